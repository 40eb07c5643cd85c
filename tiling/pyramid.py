"""Coarser levels of a label image: each pixel takes the most frequent value of the 2 x 2 below it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from tiling.geometry import Box, Size
from tiling.grid import blocks
from tiling.labels import NODATA

SMALLEST: Final = 512
"""A pyramid ends at the first level whose longest side is at most this many pixels."""
_STRIP: Final = 1 << 20
"""Pixels of one pass of `mode2`: the few arrays that it needs stay in the processor's cache."""


def level_sizes(size: Size) -> list[Size]:
    """Sizes of all levels, finest first: each is half of the one before, rounded up."""
    sizes = [size]
    while max(sizes[-1].height, sizes[-1].width) > SMALLEST:
        sizes.append(Size(-(-sizes[-1].height // 2), -(-sizes[-1].width // 2)))
    return sizes


def mode2(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) -> (ceil(H/2), ceil(W/2)): the most frequent value of every 2 x 2 pixels.

    - No data (255) wins only with a strict majority: 3 or 4 of 4. Otherwise the most frequent of the data values wins.
    - A tie goes to the value met first in reading order (row by row): no class is preferred, so none
      grows or shrinks as one zooms out, and a cell's value depends on nothing but the cell.
    - An odd last row or column counts the pixels that are there (2, or 1 in the corner), by the same rules.
    """
    height, width = labels.shape
    # Repeating the last row or column doubles each of its counts, which changes no majority and no reading order.
    odd = (height % 2, width % 2)
    padded = np.pad(labels, ((0, odd[0]), (0, odd[1])), mode="edge") if any(odd) else labels
    out = np.empty((padded.shape[0] // 2, padded.shape[1] // 2), np.uint8)
    rows = max(1, _STRIP // padded.shape[1] // 2)
    for top in range(0, out.shape[0], rows):
        out[top : top + rows] = _mode_of_cells(padded[2 * top : 2 * (top + rows)])
    return out


def build(levels: Sequence[zarr.Array[Any]]) -> None:
    """Fills levels 1, 2, ... from level 0, one shard at a time, so memory does not grow with the image.

    Each level must be half of the one before, rounded up. The cells of 2 x 2 pixels lie on the image's own grid, so
    the size of the shards changes no value.
    """
    for fine, coarse in pairwise(levels):
        side = cast("tuple[int, int]", coarse.shards or coarse.chunks)[0]
        for box in blocks(Size(*coarse.shape), side):
            bottom, right = min(2 * box.bottom, fine.shape[0]), min(2 * box.right, fine.shape[1])
            below = Box.between(2 * box.y, 2 * box.x, bottom, right)
            values = cast("NDArray[np.uint8]", fine[below.slices])
            if (values != NODATA).any():  # what is never written reads as no data
                coarse[box.slices] = mode2(values)


def _mode_of_cells(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`mode2` for even heights and widths. Pixels of a cell in reading order: a b / c d."""
    a, b, c, d = (np.ascontiguousarray(labels[y::2, x::2]) for y in (0, 1) for x in (0, 1))
    a_repeats = (a == b) | (a == c) | (a == d)
    others = np.where((b == c) | (b == d), b, np.where(c == d, c, a))
    out = np.where(a_repeats, a, others)
    empty = [pixel == NODATA for pixel in (a, b, c, d)]
    if not any(e.any() for e in empty):
        return out
    # Above, two empty pixels counted as a pair, and an empty `a` as the first value: settle those cells anew.
    holes = sum(e.view(np.uint8) for e in empty)
    first = np.where(empty[0], np.where(empty[1], c, b), a)
    settled = np.where((holes == 2) | (out == NODATA), first, out)
    return np.where(holes >= 3, np.uint8(NODATA), settled)
