"""What windows say of blocks still to come, kept for a while so that no window is run twice."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tiling import Box, Size

LIMIT: Final = 256 * 2**20
"""Bytes kept at most; beyond it a window is run again, which gives the same values."""


class Carry:
    """Parts of windows that reach beyond a block, for blocks that are done row by row, left to right.

    Only a saving: a block that finds nothing here, after a resume or on another machine, runs the window itself.
    """

    def __init__(self, size: Size, limit: int = LIMIT) -> None:
        """`size` is the image's: what windows say of pixels beyond its edges is asked for by nobody."""
        self.image = size.box
        self.limit = limit
        self.parts: dict[Box, list[tuple[Box, NDArray[np.float32]]]] = {}
        self.bytes = 0

    def keep(self, window: Box, values: NDArray[np.float32], block: Box) -> None:
        """Remembers what a window's values (classes, h, w) say to the right of a block and below it."""
        right = _between(max(window.y, block.y), block.right, min(window.bottom, block.bottom), window.right)
        below = _between(block.bottom, window.x, window.bottom, window.right)
        for part in (right, below):
            inside = part.intersect(window) if part else None
            common = inside.intersect(self.image) if inside else None
            if common is None:
                continue
            piece = values[(slice(None), *common.relative_to(window).slices)].copy()
            if self.bytes + piece.nbytes <= self.limit:
                self.parts.setdefault(window, []).append((common, piece))
                self.bytes += piece.nbytes

    def take(self, window: Box, block: Box) -> tuple[Box, NDArray[np.float32]] | None:
        """The part of a window that covers all it shares with a block: where it lies, and its values."""
        common = window.intersect(block)
        assert common is not None, "a block asks for the windows that touch it"
        return next((part for part in self.parts.get(window, ()) if part[0].contains(common)), None)

    def forget(self, block: Box) -> None:
        """Drops what only this block, or those before it, needed."""
        for window, parts in list(self.parts.items()):
            left = [(box, values) for box, values in parts if box.bottom > block.bottom or box.right > block.right]
            self.bytes -= sum(values.nbytes for _, values in parts) - sum(values.nbytes for _, values in left)
            if left:
                self.parts[window] = left
            else:
                del self.parts[window]


def _between(top: int, left: int, bottom: int, right: int) -> Box | None:
    return Box.between(top, left, bottom, right) if top < bottom and left < right else None
