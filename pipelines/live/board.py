"""The tiles of a region while it is being segmented: files that one process fills and another one shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.display.masks import Count, Place, count, tile_box
from tiling import NODATA, Box, Size
from tiling.pyramid import level_sizes, mode2

_DESCRIPTION: Final = "board.json"
_VALUES: Final = "values.npy"
CONFIDENCE: Final = "confidence.npy"
"""Beside the labels of a finished region too."""
_HALVED: Final = 2
"""Levels for which every pixel is looked at; coarser ones of an unfinished region show every n-th."""


@dataclass(frozen=True, slots=True)
class Board:
    """Class values and confidence of a region, (h, w) each, as files that can be mapped."""

    values: NDArray[np.uint8]
    """Class values; no data where nothing was said yet."""
    confidence: NDArray[np.uint8]
    """Probability of that class, 0..255 for 0..1."""
    place: Place
    classes: tuple[tuple[int, str, str], ...]
    """(value, name, #rrggbb)."""

    @classmethod
    def create(cls, folder: Path, size: Size, place: Place, classes: Sequence[tuple[int, str, str]]) -> Board:
        """An empty one, in a folder of its own."""
        folder.mkdir(parents=True)
        values, confidence = (
            np.lib.format.open_memmap(folder / name, mode="w+", dtype=np.uint8, shape=(size.height, size.width))
            for name in (_VALUES, CONFIDENCE)
        )
        values[:] = NODATA
        place_fields = [place.y, place.x, place.step_y, place.step_x]
        text = json.dumps({"place": place_fields, "classes": [list(c) for c in classes]})
        # By a rename: whoever looks finds all of it, or nothing yet.
        partial = folder / f".{_DESCRIPTION}"
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / _DESCRIPTION)
        return cls(values, confidence, place, tuple(classes))

    @classmethod
    def open(cls, folder: Path) -> Board:
        """To look at. Raises FileNotFoundError where it is not laid out yet."""
        description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        values, confidence = (np.load(folder / name, mmap_mode="r") for name in (_VALUES, CONFIDENCE))
        classes = tuple((int(v), str(n), str(c)) for v, n, c in description["classes"])
        return cls(values, confidence, Place(*description["place"]), classes)

    def confidence_at(self, y: int, x: int) -> float | None:
        """Probability of the class at a pixel; None outside, and where nothing was said."""
        return confidence_at(self.confidence, y, x)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Of all zoom levels, finest first, as a finished label image has them."""
        return tuple(level_sizes(Size(*self.values.shape)))

    def tile(self, level: int, row: int, column: int) -> NDArray[np.uint8]:
        """(h, w) class values of a tile. Raises IndexError where there is none."""
        return self.read(tile_box(self.sizes, level, row, column), level)

    def thin_tile(self, level: int, row: int, column: int) -> tuple[NDArray[np.uint8], bool]:
        """`tile`: what is being segmented has no other levels yet."""
        return self.tile(level, row, column), True

    def read(self, box: Box, level: int = 0) -> NDArray[np.uint8]:
        """(h, w) class values of a box of a level."""
        return self._coarse(self.values, box, level)

    def count(self, corners: Sequence[tuple[float, float]]) -> Count:
        """What a polygon of level-0 (y, x) corners holds."""
        return count(self, corners)

    def _coarse(self, plane: NDArray[np.uint8], box: Box, level: int) -> NDArray[Any]:
        height, width = plane.shape
        step = 2**level
        fine = Box.between(box.y * step, box.x * step, min(box.bottom * step, height), min(box.right * step, width))
        skip = max(0, level - _HALVED)
        values = np.ascontiguousarray(plane[fine.slices][:: 2**skip, :: 2**skip])
        for _ in range(level - skip):
            values = mode2(values)
        return values


def confidence_at(plane: NDArray[np.uint8], y: int, x: int) -> float | None:
    """From a plane (h, w) of probabilities 0..255."""
    inside = 0 <= y < plane.shape[0] and 0 <= x < plane.shape[1]
    value = int(plane[y, x]) if inside else 0
    return value / 255 if value else None
