"""A small picture of a large image, in memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tiling.geometry import Box, Size
from tiling.source import Level, Source
from tiling.view import View

_PIECE: Final = 1 << 21
"""Pixels that are read at once, about."""
_MOST: Final = 1 << 24
"""Pixels that are read at once, at most, where the file's tiles are large."""
_STRETCH: Final = (2.0, 98.0)
"""Percentiles that become black and white where the values are not a display's."""


def thumbnail(image: View, max_side: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """((h, w, 3) RGB, (h, w) valid): the whole image, its longest side at most `max_side` pixels, never enlarged.

    Each pixel is the mean of the valid pixels below it, from the coarsest level that is fine enough. Eight-bit grey
    and RGB are shown as they are; all else is stretched from the 2nd to the 98th percentile of each band. Red, green
    and blue are found by their names, or are the first three bands. What is not valid is black.
    """
    source = image.source
    scale = min(1.0, max_side / max(image.size.height, image.size.width))
    wanted = Size(max(1, round(image.size.height * scale)), max(1, round(image.size.width * scale)))
    level = _coarsest(source.levels, wanted)
    size = source.levels[level].size
    bands = _display_bands(source.bands)
    out = Size(min(wanted.height, size.height), min(wanted.width, size.width))
    mean, valid = _mean(source, level, bands, out)
    if not _is_display(source, bands):
        mean = _stretch(mean, valid)
    rgb = np.clip(mean + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(rgb, (out.height, out.width, 3))), valid


def _coarsest(levels: Sequence[Level], wanted: Size) -> int:
    """Index of the coarsest level that has all the pixels wanted; 0 where none has."""
    fine = [i for i, x in enumerate(levels) if x.size.height >= wanted.height and x.size.width >= wanted.width]
    return fine[-1] if fine else 0


def _display_bands(names: Sequence[str]) -> list[int]:
    """Indices of red, green and blue, or of the one band that is shown as grey."""
    lower = [name.lower() for name in names]
    if {"red", "green", "blue"} <= set(lower):
        return [lower.index(color) for color in ("red", "green", "blue")]
    return [0, 1, 2] if len(names) >= 3 else [0]


def _is_display(source: Source, bands: Sequence[int]) -> bool:
    """Whether the values are meant for a display: eight-bit grey, three bands, or named colours."""
    named = [source.bands[i].lower() for i in bands] == ["red", "green", "blue"]
    return source.dtype == np.uint8 and (named or len(source.bands) in (1, 3))


def _mean(source: Source, level: int, bands: list[int], out: Size) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """((h, w, bands), (h, w) valid): mean of the valid pixels that fall on each output pixel; 0 where none do."""
    size = source.levels[level].size
    exact = np.float32 if source.dtype.itemsize <= 2 else np.float64
    total = np.zeros((len(bands), out.height, out.width))
    weight = np.zeros((out.height, out.width))
    for box in _pieces(source.levels[level]):
        pixels = source.read(box, level)[..., bands]
        valid = source.valid(box, level) & np.isfinite(pixels).all(axis=2)
        rows = np.arange(box.y, box.bottom) * out.height // size.height
        columns = np.arange(box.x, box.right) * out.width // size.width
        place = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        weight[place] += _sums(valid.astype(np.float32), rows, columns)
        for band in range(len(bands)):
            values = pixels[..., band].astype(exact)
            values[~valid] = 0
            total[band][place] += _sums(values, rows, columns)
    return np.moveaxis(total / np.maximum(weight, 1), 0, 2), weight > 0


def _sums(values: NDArray[Any], rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[Any]:
    """(H, W) summed over equal rows and columns; both are sorted and leave no number out."""
    starts = np.unique(rows, return_index=True)[1].tolist()
    ends = [*starts[1:], len(rows)]
    by_row = np.stack([values[start:end].sum(axis=0) for start, end in zip(starts, ends, strict=True)])
    return np.asarray(np.add.reduceat(by_row, np.unique(columns, return_index=True)[1], axis=1))


def _pieces(level: Level) -> Iterator[Box]:
    """Cuts a level into pieces of about `_PIECE` pixels, on its file's tile borders so that no tile is decoded twice.

    What lies in one tile, like an array in memory, is cut all the same.
    """
    size, tile = level.size, level.chunk
    width = min(tile.width * max(1, round(_PIECE**0.5) // tile.width), size.width)
    height = tile.height * max(1, _PIECE // width // tile.height)
    height = min(height, size.height) if height * width <= _MOST else max(1, _PIECE // width)
    for y in range(0, size.height, height):
        for x in range(0, size.width, width):
            yield Box.between(y, x, min(y + height, size.height), min(x + width, size.width))


def _stretch(mean: NDArray[np.float64], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Each band from its percentiles among valid pixels to 0..255; a band of one value becomes mid grey."""
    if not valid.any():
        return np.zeros_like(mean)
    low, high = np.percentile(mean[valid], _STRETCH, axis=0)
    spread = np.where(high > low, high - low, 1.0)
    stretched = np.where(high > low, (mean - low) / spread, 0.5) * 255
    return np.where(valid[..., None], stretched, 0.0)
