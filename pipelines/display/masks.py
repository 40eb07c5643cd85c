"""A label image as tiles for a browser: bare class values at every zoom, and where they lie on the image."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from pipelines.display.thin import ThinLevels
from pipelines.errors import RequestError
from tiling import NODATA, Box, Georef, Size
from tiling.labels import Labels
from tiling.layers import STEPS

TILE: Final = 512
"""Side of a mask tile, which is a chunk of the label image."""
COUNTED: Final = 2**24
"""Pixels of a region that are counted one by one; larger regions are counted on a coarser level."""
KEPT: Final = 96
"""Tiles that are kept: 24 MB."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a label image lies on its image: level-0 pixels of the image from pixels of the label image."""

    y: float
    """Level-0 row of the first label pixel's top."""
    x: float
    step_y: float
    """Level-0 pixels that a label pixel covers."""
    step_x: float

    @classmethod
    def of(cls, labels: Labels, image: Georef) -> Place:
        """Of labels on their image. Micrometres may be those that a user stated, not the file's: pixels tell then."""
        if labels.georef.unit == "um":
            return cls(*labels.corner, *labels.scale)
        return cls.between(labels.georef, image)

    @classmethod
    def between(cls, labels: Georef, image: Georef) -> Place:
        """From two georeferences of the same world; raises RequestError where one is turned against the other."""
        if labels.unit != image.unit:
            return cls(0.0, 0.0, 1.0, 1.0)
        a: Affine = ~image.transform @ labels.transform
        if max(abs(a.b), abs(a.d)) > 1e-6 * max(abs(a.a), abs(a.e)):
            raise RequestError("the mask is turned against its image and cannot be laid over it; segment again")
        return cls(float(a.f), float(a.c), float(a.e), float(a.a))

    def of_labels(self, points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
        """(y, x) in pixels of the label image of points in level-0 pixels of the image."""
        return [((y - self.y) / self.step_y, (x - self.x) / self.step_x) for y, x in points]


@dataclass(frozen=True, slots=True)
class Count:
    """What a region of a label image holds."""

    pixels: dict[int, float]
    """Label pixels for each class value, no data among them."""
    exact: bool
    """Whether every pixel was counted; False where a coarser level stands for it."""


class MaskTiles:
    """A finished label image as tiles; safe to use from several threads."""

    def __init__(self, labels: Labels, image: Georef | None, cache: Path | None = None) -> None:
        """`image` is where the image's own pixels lie; None puts the mask where an image of its size would be.

        `cache` is a folder for levels that keep what is thin; without one there are none.
        """
        self.labels = labels
        self._cache = cache
        self._making = threading.Lock()
        self.sizes = tuple(Size(*array.shape) for array in labels.levels)
        self.place = Place(0, 0, 1, 1) if image is None else Place.of(labels, image)
        self._kept: OrderedDict[tuple[int, int, int], NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path, image: Georef | None, cache: Path | None = None) -> MaskTiles:
        """From the folder labels.zarr; raises ImageError where it is none."""
        return cls(Labels.open(folder), image, cache)

    def tile(self, level: int, row: int, column: int) -> NDArray[np.uint8]:
        """(h, w) class values, cut at the edge. Raises IndexError where there is no such tile."""
        box, key = tile_box(self.sizes, level, row, column), (level, row, column)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        values = self.read(box, level)
        with self._lock:
            self._kept[key] = values
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return values

    @property
    def confident(self) -> bool:
        """Whether the probability of its classes lies beside it."""
        return "probability" in self.labels.layers

    def probability_at(self, y: int, x: int) -> float | None:
        """How probable the class of a pixel is, 0..1; None outside, and where nothing was said."""
        if not self.confident or not self.sizes[0].box.contains(Box(y, x, 1, 1)):
            return None
        value = int(np.asarray(self.labels.layers["probability"].levels[0][:, y, x]).max())
        return None if value == NODATA else value / STEPS

    @cached_property
    def thin(self) -> ThinLevels | None:
        """Levels in which the rarest class below a pixel shows, where the levels of the mask show the most frequent."""
        return None if self._cache is None else ThinLevels(self.labels, self._cache)

    def thin_tile(self, level: int, row: int, column: int) -> tuple[NDArray[np.uint8], bool]:
        """((h, w) class values, whether they are final): `tile` without loss of what is thin."""
        values = None
        with self._making:  # once, whoever asks first
            thin = self.thin
        if 0 < level < len(self.sizes) and thin is not None:
            values = thin.read(tile_box(self.sizes, level, row, column), level)
        return (self.tile(level, row, column), level == 0) if values is None else (values, True)

    def close(self) -> None:
        """Stops what is being made."""
        thin = self.__dict__.pop("thin", None)
        if thin is not None:
            thin.close()

    def read(self, box: Box, level: int) -> NDArray[np.uint8]:
        """(h, w); raises RequestError where the label image is damaged."""
        try:
            return np.ascontiguousarray(self.labels.read(box, level))
        except (ValueError, RuntimeError, OSError) as error:  # what Zarr and its codecs raise for damaged bytes
            reason = " ".join(str(error).split())
            raise RequestError(f"{self.labels.path} is damaged ({reason}); segment the image again") from error

    def count(self, corners: Sequence[tuple[float, float]]) -> Count:
        """What a polygon of level-0 (y, x) corners holds: the label pixels whose centres lie in it."""
        return count(self, corners)


def tile_box(sizes: Sequence[Size], level: int, row: int, column: int) -> Box:
    """The pixels of a tile of one of the levels; raises IndexError where there is none."""
    if not 0 <= level < len(sizes):
        raise IndexError(f"there is no level {level} among {len(sizes)}")
    size, y, x = sizes[level], row * TILE, column * TILE
    if row < 0 or column < 0 or y >= size.height or x >= size.width:
        raise IndexError(f"there is no tile {row}, {column} in {size}")
    return Box.between(y, x, min(y + TILE, size.height), min(x + TILE, size.width))


def count(mask: Any, corners: Sequence[tuple[float, float]]) -> Count:
    """`MaskTiles.count`, for anything that has sizes, place and read."""
    place: Place = mask.place
    own = place.of_labels(corners)
    full: Size = mask.sizes[0]
    low_y, low_x = (max(0, int(np.floor(min(p[i] for p in own)))) for i in (0, 1))
    high_y = min(full.height, int(np.ceil(max(p[0] for p in own))))
    high_x = min(full.width, int(np.ceil(max(p[1] for p in own))))
    if low_y >= high_y or low_x >= high_x:
        return Count({}, exact=True)
    level = 0
    while level + 1 < len(mask.sizes) and (high_y - low_y) * (high_x - low_x) >> (2 * level) > COUNTED:
        level += 1
    step = 2**level
    size = mask.sizes[level]
    box = Box.between(
        low_y // step, low_x // step, min(-(-high_y // step), size.height), min(-(-high_x // step), size.width)
    )
    inside = polygon_mask([(y / step, x / step) for y, x in own], box)
    values, counts = np.unique(mask.read(box, level)[inside], return_counts=True)
    return Count({int(v): float(n) * step * step for v, n in zip(values, counts, strict=True)}, exact=level == 0)


def polygon_mask(corners: Sequence[tuple[float, float]], box: Box) -> NDArray[np.bool_]:
    """(h, w): True for pixels of `box` whose centre lies in the polygon of (y, x) corners, by the even-odd rule."""
    inside = np.zeros((box.height, box.width), bool)
    columns = box.x + 0.5 + np.arange(box.width)
    edges = [(corners[i], corners[(i + 1) % len(corners)]) for i in range(len(corners))]
    for row in range(box.height):
        y = box.y + row + 0.5
        crossed = [(a, b) for a, b in edges if (a[0] <= y) != (b[0] <= y)]
        crossings = sorted(a[1] + (y - a[0]) / (b[0] - a[0]) * (b[1] - a[1]) for a, b in crossed)
        for left, right in zip(crossings[::2], crossings[1::2], strict=True):
            first, stop = np.searchsorted(columns, (left, right))
            inside[row, first:stop] = True
    return inside
