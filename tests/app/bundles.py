"""Finished results for tests: really written, through the canvas, the exports and run.json."""

from __future__ import annotations

from collections.abc import Sequence
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
    **changed: Any,
) -> Bundle:
    """The result for `path` with these class values (h, w); `changed` are fields of run.json."""
    source = open_image(path)
    view, size = View.open(source), Size(*values.shape)
    canvas = Canvas.create(
        folder / f"{LABELS}.partial", size=size, block=512, chunk=128, classes=classes, georef=view.georef,
        kind=source.kind, name=source.name, fingerprint="abc",
    )  # fmt: skip
    with canvas:
        for box in canvas.blocks:
            canvas.write(box, np.ascontiguousarray(values[box.slices]))
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
            size=values.shape, spacing=str(view.spacing) if view.spacing else None,
            transform=tuple(view.georef.transform[:6]), note=view.note,
        ),
        "fingerprint": "abc", "windows": 25, "blocks": 4, "resumed_blocks": 1,
        "seconds": {"predict": 83.2, "exports": 1.5}, "peak_memory": 1201 * 2**20,
        "outputs": (LABELS, *outputs), "warnings": source.warnings, "versions": {"veca": "0.1.0"},
    }  # fmt: skip
    write_run(folder, RunRecord(**(fields | changed)))
    return Bundle.open(folder)
