"""Label images for tests: written through a canvas, and looked at as bytes on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.canvas import Canvas
from tiling.geometry import Size
from tiling.georef import Georef, Spacing
from tiling.labels import NODATA, LabelClass, Labels

CLASSES = (
    LabelClass(0, "background", (0, 0, 0)),
    LabelClass(1, "tumör <1>", (220, 40, 40)),
    LabelClass(7, "stroma", (40, 40, 220)),
    LabelClass(9, "necrosis", (90, 90, 90)),
)
SLIDE = Georef.micrometres(Spacing(0.5, 0.25, "um"))


def random_labels(height: int, width: int, seed: int = 0, smooth: int = 1) -> NDArray[np.uint8]:
    """(height, width) values of CLASSES and no data, but never 9; `smooth` is the side of a patch of one value."""
    rows, columns = -(-height // smooth), -(-width // smooth)
    patches = np.random.default_rng(seed).choice(np.array([0, 1, 7, NODATA], np.uint8), (rows, columns))
    return patches.repeat(smooth, 0).repeat(smooth, 1)[:height, :width]


def canvas(path: Path, size: Size, **changed: Any) -> Canvas:
    """A slide's canvas."""
    options: dict[str, Any] = {
        "block": 512,
        "chunk": 128,
        "classes": CLASSES,
        "georef": SLIDE,
        "kind": "slide",
        "name": "slide 1",
        "fingerprint": "abc",
    }
    return Canvas.create(path, size=size, **(options | changed))


def publish(folder: Path, values: NDArray[np.uint8], **changed: Any) -> Labels:
    """`values` as a finished label image in `folder`."""
    with canvas(folder / "labels.zarr.partial", Size(*values.shape), **changed) as one:
        for box in one.blocks:
            one.write(box, values[box.slices])
        return one.publish(folder / "labels.zarr")


def content(folder: Path) -> dict[str, bytes]:
    """Every file's bytes and every folder, by their paths."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"/" for path in paths}
