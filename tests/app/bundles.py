"""Finished results for tests: really written, through the canvas, the exports and run.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.bundle import (
    LABELS,
    Bundle,
    GridRecord,
    ImageRecord,
    ModelRecord,
    PlanRecord,
    RunRecord,
    image_fingerprint,
    write_run,
)
from tiling import LabelClass, Size, View, open_image
from tiling.canvas import Canvas
from tiling.exports import EXPORTS

CLASSES = (
    LabelClass(0, "background", (0, 0, 0)),
    LabelClass(1, "tumör *x* <b>|$y$", (220, 40, 40)),
    LabelClass(7, "stroma", (40, 40, 220)),
)


def write_bundle(
    folder: Path,
    path: Path,
    values: NDArray[np.uint8],
    classes: Sequence[LabelClass] = CLASSES,
    exports: Sequence[str] = ("areas", "preview"),
    view: View | None = None,
    **changed: Any,
) -> Bundle:
    """The result for `path` with these class values (h, w), of its own pixels or a `view`'s; `changed` are fields of
    run.json.
    """
    boxes = {
        (y // 512, x // 512): values[y : y + 512, x : x + 512]
        for y in range(0, values.shape[0], 512)
        for x in range(0, values.shape[1], 512)
    }
    view = view or View.open(open_image(path))
    return _write(folder, path, view, Size(*values.shape), 512, boxes, classes, exports, **changed)


def write_bundle_from(folder: Path, path: Path, blocks: Mapping[tuple[int, int], NDArray[np.uint8]]) -> Bundle:
    """The result for a large image: blocks of 2048 pixels by (row, column), no data elsewhere; nothing is exported."""
    view = View.open(open_image(path))
    return _write(folder, path, view, view.size, 2048, blocks, CLASSES, ())


def _write(
    folder: Path,
    path: Path,
    view: View,
    size: Size,
    block: int,
    blocks: Mapping[tuple[int, int], NDArray[np.uint8]],
    classes: Sequence[LabelClass],
    exports: Sequence[str],
    **changed: Any,
) -> Bundle:
    source = view.source
    canvas = Canvas.create(
        folder / f"{LABELS}.partial", size=size, block=block, chunk=128 if block == 512 else 512, classes=classes,
        georef=view.georef, kind=source.kind, name=source.name, fingerprint="abc",
        scale=view.scale,
    )  # fmt: skip
    with canvas:
        for box in canvas.blocks:
            values = blocks.get((box.y // block, box.x // block))
            given = np.full((box.height, box.width), 255, np.uint8) if values is None else values
            canvas.write(box, np.ascontiguousarray(given))
        labels = canvas.publish(folder / LABELS)
    outputs = [file.name for name in exports for file in EXPORTS[name](labels, folder, view, {"MODEL": "test"})]
    fields: dict[str, Any] = {
        "image": ImageRecord(
            path=str(path), kind=source.kind, size=(view.size.height, view.size.width), bands=source.bands,
            dtype=str(source.dtype), spacing=str(view.spacing) if view.spacing else None,
            fingerprint=image_fingerprint(str(path)),
        ),
        "model": ModelRecord(name="aerial-landcover", digest="9f" * 32),
        "plan": PlanRecord(
            cores=64, window=512, overlap=64, batch=1, block=2048, device="cpu", precision="float32",
            memory=6 * 2**30, predicted=1400 * 2**20, reason="all cores and the model's own window fit",
        ),
        "grid": GridRecord(
            size=(size.height, size.width), spacing=str(view.spacing) if view.spacing else None,
            transform=tuple(view.georef.transform[:6]), note=view.note,
        ),
        "fingerprint": "abc", "windows": 25, "blocks": 4, "resumed_blocks": 1,
        "seconds": {"predict": 83.2, "exports": 1.5}, "peak_memory": 1201 * 2**20,
        "outputs": (LABELS, *outputs), "warnings": source.warnings, "versions": {"veca": "0.1.0"},
    }  # fmt: skip
    write_run(folder, RunRecord(**(fields | changed)))
    return Bundle.open(folder)
