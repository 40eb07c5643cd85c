"""Overlapping windows become one image: a tapered mean whose weights are those that really fell on a pixel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tiling.geometry import Box, Size

Profile = Callable[[int, int], NDArray[np.float32]]


def linear(length: int, overlap: int) -> NDArray[np.float32]:
    """(length,) 1 in the middle, ramps of `overlap` pixels at both ends: two neighbours' ramps sum to one."""
    rise = (np.arange(length) + 0.5) / max(overlap, 0.5)
    ramps: NDArray[np.float64] = np.minimum(1.0, np.minimum(rise, rise[::-1]))
    return ramps.astype(np.float32)


def gaussian(length: int, overlap: int) -> NDArray[np.float32]:  # noqa: ARG001 - every profile is called alike
    """(length,) a bell of sigma length / 8 around the middle, as in MONAI's importance map."""
    x = np.arange(length) - (length - 1) / 2
    bell: NDArray[np.float64] = np.exp(-(x**2) / (2 * (length / 8) ** 2))
    return bell.astype(np.float32)


def constant(length: int, overlap: int) -> NDArray[np.float32]:  # noqa: ARG001 - every profile is called alike
    """(length,) ones: the plain mean."""
    return np.ones(length, dtype=np.float32)


TAPERS: Final[dict[str, Profile]] = {"linear": linear, "gaussian": gaussian, "constant": constant}
LEAST: Final = 1e-3
"""Smallest weight of a bell's pixel, as in MONAI: both sides together, so that corners count a little."""


def taper(window: Size, overlap: int, profile: str = "linear") -> NDArray[np.float32]:
    """(H, W) weights of a window's pixels, all positive."""
    if profile not in TAPERS:
        raise ValueError(f"there is no taper {profile!r}; the tapers are {', '.join(TAPERS)}")
    along = TAPERS[profile]
    weights = np.outer(along(window.height, overlap), along(window.width, overlap))
    return weights.clip(LEAST) if profile == "gaussian" else weights


_ROWS: Final = 32
"""Rows that are worked on at once: few, so that what is made on the way stays in the processor's cache."""


class Stitcher:
    """Collects the windows that fall on one block and gives their tapered mean.

    Windows must be added in the grid's order: then a pixel's sum does not depend on where the blocks were cut.
    """

    def __init__(self, box: Box, classes: int, weights: NDArray[np.float32]) -> None:
        self.box = box
        self.weights = weights
        self.sums = np.zeros((classes, box.height, box.width), dtype=np.float32)
        self.totals = np.zeros((box.height, box.width), dtype=np.float32)

    def add(self, window: Box, values: NDArray[np.float32], part: Box | None = None) -> None:
        """Adds a window's values (classes, h, w), or those of a `part` of it.

        What falls outside the block is left to the other blocks.
        """
        part = part or window
        common = part.intersect(self.box)
        if common is None:
            return
        here, there = common.relative_to(self.box).slices, common.relative_to(part).slices
        weights = self.weights[common.relative_to(window).slices]
        self.totals[here] += weights
        sums, values = self.sums[(slice(None), *here)], values[(slice(None), *there)]
        for top in range(0, common.height, _ROWS):
            rows = slice(top, top + _ROWS)
            sums[:, rows] += values[:, rows] * weights[rows]

    @property
    def covered(self) -> NDArray[np.bool_]:
        """(h, w): True where at least one window fell."""
        return self.totals > 0

    def mean(self, rows: slice = slice(None)) -> NDArray[np.float32]:
        """(classes, h, w) the tapered mean, of some rows or all; zero where no window fell."""
        totals = self.totals[rows].copy()
        totals[totals == 0] = 1
        mean: NDArray[np.float32] = self.sums[:, rows] / totals
        return mean

    def argmax(self, classes: int | None = None) -> NDArray[np.uint8]:
        """(h, w) index of the largest mean, the first of equals, among the first `classes`."""
        index = np.zeros(self.totals.shape, dtype=np.uint8)
        for top in range(0, len(index), _ROWS):
            best, rows = self.sums[0, top : top + _ROWS].copy(), index[top : top + _ROWS]
            for number, sums in enumerate(self.sums[1:classes, top : top + _ROWS], start=1):
                # Numbers rise, so the larger one is the later one: eight times as fast as an assignment under a mask.
                np.maximum(rows, (sums > best).view(np.uint8) * np.uint8(number), out=rows)
                np.maximum(best, sums, out=best)
        return index
