"""Where a stained slide has tissue, at low resolution: what lets empty glass be passed over."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.filters import threshold_otsu
from skimage.measure import label
from skimage.morphology import closing, disk

from tiling.geometry import Box, Size
from tiling.source import Source
from tiling.view import View

GLASS_SATURATION: Final = 0.12
"""Glass is white or grey: its median saturation, (max - min) / max of red, green, blue, is below this ..."""
GLASS_BRIGHTNESS: Final = 150
"""... and its median brightness, of 0..255, above this."""
CLEAR_STEP: Final = 0.04
"""Tissue is at least this much more saturated than glass, on average; else nothing separates clearly."""

_BLOCK = 2048


@dataclass(frozen=True)
class TissueMask:
    """Tissue or glass, in cells that cover a view (or a source's level 0) from its top-left corner."""

    mask: NDArray[np.bool_]
    """(cells down, cells across): True where there may be tissue."""
    cell: tuple[float, float]
    """(y, x): size of a cell in pixels of the view."""
    size: Size
    """Of the view."""
    note: str
    """What was found, in one line."""

    @property
    def fraction(self) -> float:
        """Share of cells that may be tissue."""
        return float(self.mask.mean())

    def touches(self, box: Box) -> bool:
        """Whether a box, in pixels of the view, comes within one cell of tissue. Outside the view there is none."""
        if self.size.box.intersect(box) is None:
            return False
        y, x = self.cell
        top, left = max(math.floor(box.y / y) - 1, 0), max(math.floor(box.x / x) - 1, 0)
        bottom, right = math.ceil(box.bottom / y) + 1, math.ceil(box.right / x) + 1
        return bool(self.mask[top:bottom, left:right].any())


def tissue_mask(image: View | Source, *, max_side: int = 2048) -> TissueMask:
    """Finds tissue on a brightfield slide by its colour, on a grid of at most `max_side` cells a side.

    Otsu's threshold on saturation tells which cells are glass; a cell is tissue where it is more saturated than that
    glass varies, or much darker. It is meant to lose no tissue: where glass and tissue do not separate clearly, and for
    an image that is no RGB slide of 8 bits, everything is tissue. Reads the coarsest level that is fine enough.
    """
    source, size = (image.source, image.size) if isinstance(image, View) else (image, image.levels[0].size)
    if source.kind == "raster" or source.bands != ("red", "green", "blue") or source.dtype != np.uint8:
        return _everywhere(size, "not an RGB slide of 8 bits: all of it is taken as tissue")
    level = _level_for(source, max_side)
    level_size = source.levels[level].size
    step = math.ceil(max(level_size.height, level_size.width) / max_side)
    colour, known = _cell_means(source, level, step)
    mask = _find(colour, known)
    if mask is None:
        return _everywhere(size, "glass and tissue do not separate clearly: all of it is taken as tissue")
    cell = step * size.height / level_size.height, step * size.width / level_size.width
    for damage in source.damage:
        if damage.level == level:  # there may be tissue where nothing can be seen
            top, left = damage.box.y // step, damage.box.x // step
            mask[top : math.ceil(damage.box.bottom / step), left : math.ceil(damage.box.right / step)] = True
    return TissueMask(mask, cell, size, f"tissue covers {mask.mean():.0%} of the slide")


def _everywhere(size: Size, note: str) -> TissueMask:
    return TissueMask(np.ones((1, 1), dtype=np.bool_), (float(size.height), float(size.width)), size, note)


def _level_for(source: Source, max_side: int) -> int:
    """The coarsest level that has at least one pixel for each cell."""
    fine = [i for i, level in enumerate(source.levels) if max(level.size.height, level.size.width) >= max_side]
    return max(fine, default=0)


def _cell_means(source: Source, level: int, step: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Mean colour (3, cells down, cells across) of the valid pixels of each step x step cell; which cells have any."""
    size = source.levels[level].size
    down, across = math.ceil(size.height / step), math.ceil(size.width / step)
    colour, share = np.zeros((3, down, across), np.float32), np.zeros((down, across), np.float32)
    for box in _blocks(size, step):
        if source.blank(box, level):
            continue
        pixels, valid = source.read(box, level), source.valid(box, level)
        rows = slice(box.y // step, math.ceil(box.bottom / step))
        columns = slice(box.x // step, math.ceil(box.right / step))
        pixels[~valid] = 0
        colour[:, rows, columns] = np.moveaxis(_reduced(pixels, step), -1, 0)
        share[rows, columns] = _reduced(valid * np.uint8(255), step) / np.float32(255)
    return np.asarray(colour / np.where(share > 0, share, 1), np.float32), share > 0


def _blocks(size: Size, step: int) -> Iterator[Box]:
    """Boxes of whole cells that cover a level, small enough for memory."""
    side = step * max(1, _BLOCK // step)
    for y in range(0, size.height, side):
        for x in range(0, size.width, side):
            yield Box.between(y, x, min(y + side, size.height), min(x + side, size.width))


def _reduced(pixels: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Means over step x step cells of (H, W) or (H, W, 3); the last cells may be smaller."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).reduce(step))


def _find(colour: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Tissue among the cells, or None where it does not stand out from glass."""
    brightness = colour.max(axis=0)
    saturation = (brightness - colour.min(axis=0)) / np.maximum(brightness, 1)
    seen = saturation[known]
    if seen.size == 0 or np.ptp(seen) < CLEAR_STEP:
        return None
    threshold = float(threshold_otsu(seen))  # type: ignore[no-untyped-call]
    pale = known & (saturation <= threshold)
    stained = known & (saturation > threshold)
    glass, glow = float(np.median(saturation[pale])), float(np.median(brightness[pale]))
    clear = saturation[stained].mean() - saturation[pale].mean() >= CLEAR_STEP
    if not clear or glass > GLASS_SATURATION or glow < GLASS_BRIGHTNESS:
        return None
    while (lower := _lower(saturation[pale])) is not None:
        pale = known & (saturation <= lower)
        stained = known & ~pale
        threshold, glass, glow = lower, float(np.median(saturation[pale])), float(np.median(brightness[pale]))
    # Otsu's threshold lies half way to stained tissue, above fat and pale stroma; the glass's own noise is closer.
    noise = 1.4826 * float(np.median(np.abs(saturation[pale] - glass)))
    coloured = saturation > min(threshold, glass + max(4 * noise, CLEAR_STEP / 2))
    dark = (brightness < 0.6 * glow) & (brightness > 0)
    return _cleaned((coloured | dark) & known, sure=stained | dark)


def _lower(pale: NDArray[np.float32]) -> float | None:
    """The threshold that tells pale tissue from glass, where a pen or strong stains have put both on one side."""
    if np.ptp(pale) < CLEAR_STEP:
        return None
    threshold = float(threshold_otsu(pale))  # type: ignore[no-untyped-call]
    above = pale > threshold
    return threshold if above.any() and pale[above].mean() - pale[~above].mean() >= CLEAR_STEP else None


def _cleaned(mask: NDArray[np.bool_], sure: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without single cells that are not sure to be tissue, and without small gaps."""
    parts = label(mask, connectivity=2)  # type: ignore[no-untyped-call]
    kept = mask & ((np.bincount(parts.ravel())[parts] > 1) | sure)
    return np.asarray(closing(np.pad(kept, 2), disk(2))[2:-2, 2:-2])  # type: ignore[no-untyped-call]
