"""Which windows each block needs, and what they say of blocks still to come, kept so that no window is run twice."""

from __future__ import annotations

import functools
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from tiling import Box, Grid, blocks
from tiling.grid import Axis
from veca_core.memory import FLOAT

LIMIT: Final = 256 * 2**20
"""Bytes kept at most; beyond it a window is run again, which gives the same values."""
WALKED: Final = 512
"""Windows of an image that is walked over to tell what is kept."""
_PRIVATE: Final = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
"""Shared memory, which is the default where there is a choice, is filled several times slower."""


class Tissue(Protocol):
    """Where a slide holds something worth looking at."""

    def touches(self, box: Box) -> bool: ...


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done for a block: one of its windows; or, with none, the block is complete."""

    block: Box
    window: Box | None = None
    part: Box | None = None
    """The part of the window that an earlier step has kept for this block; None: the window is to be run."""
    keep: tuple[Box, ...] = ()
    """Parts of a window that is run, which later blocks will take."""

    @property
    def common(self) -> Box:
        """What window and block share."""
        common = self.window.intersect(self.block) if self.window else None
        assert common is not None, "a step's window touches its block"
        return common


def schedule(
    grid: Grid, blocks: Iterable[Box], classes: int, *, tissue: Tissue | None = None, limit: int = LIMIT
) -> Iterator[Step]:
    """The steps for some blocks of an image, which come row by row and left to right; windows in the grid's order.

    Arithmetic only, made as it is asked for: what is kept never exceeds `limit` bytes, and of the image's windows only
    those that are kept are remembered. With a limit of 0 each block runs all its windows. Windows without tissue are
    left out.
    """
    kept: dict[Box, tuple[Box, ...]] = {}
    held = 0
    for block in blocks:
        for window in grid.touching(block):
            if tissue is not None and not tissue.touches(window):
                continue
            common = Step(block, window).common
            part = next((p for p in kept.get(window, ()) if p.contains(common)), None)
            if part is not None:
                yield Step(block, window, part)
                continue
            keep = []
            for beyond in _beyond(window, block, grid):
                if beyond not in kept.get(window, ()) and held + _bytes(beyond, classes) <= limit:
                    held += _bytes(beyond, classes)
                    keep.append(beyond)
            if keep:
                kept[window] = (*kept.get(window, ()), *keep)
            yield Step(block, window, None, tuple(keep))
        for window, parts in list(kept.items()):
            left = tuple(part for part in parts if needed_after(part, block))
            held -= sum(_bytes(part, classes) for part in parts) - sum(_bytes(part, classes) for part in left)
            if left:
                kept[window] = left
            else:
                del kept[window]
        yield Step(block)


@functools.lru_cache
def carried(grid: Grid, side: int, classes: int) -> int:
    """Bytes that `schedule` keeps at most for blocks of `side` pixels over a whole image.

    Images of few windows are walked over. Of others it is told without that: between two rows of blocks that is what
    the windows of one say of those below, all along the image; within a row also what a block's windows say of the
    block to the right, and what is kept anew before the old goes: up to twice as much as is kept where an image is
    narrow, for there the old goes first.
    """
    if len(grid) <= WALKED:
        return _walked(grid, side, classes)
    columns = grid.columns
    below, along = _beyond_most(grid.rows, side), _covered(columns, columns.length)
    beside = 2 * _covered(grid.rows, side) * _beyond_most(columns, side)
    anew = below * min(along, _covered(columns, side) + 2 * columns.window)
    return min(LIMIT, (below * along + beside + anew) * (classes * FLOAT + 1))


def _walked(grid: Grid, side: int, classes: int) -> int:
    """The most that is kept at once, found by the schedule itself."""
    kept: list[Box] = []
    held = most = 0
    for step in schedule(grid, blocks(grid.size, side), classes):
        kept += step.keep
        held += sum(_bytes(part, classes) for part in step.keep)
        most = max(most, held)
        if step.window is None:
            kept = [part for part in kept if needed_after(part, step.block)]
            held = sum(_bytes(part, classes) for part in kept)
    return most


def _beyond_most(axis: Axis, side: int) -> int:
    """Pixels along an axis that are kept at most when a block is done: of each window all beyond the block where it
    begins, until it ends.
    """
    kept = [0] * -(-axis.length // side)
    for start in map(axis.start, range(axis.count)):
        first, end = start // side, min(start + axis.window, axis.length)
        for block in range(first, -(-end // side) - 1):
            kept[block] += end - (first + 1) * side
    return max(kept)


def _covered(axis: Axis, side: int) -> int:
    """Pixels along an axis that the windows which begin in a block have in it, at most; shared ones count once each."""
    covered = [0] * -(-axis.length // side)
    for start in map(axis.start, range(axis.count)):
        end = min(start + axis.window, axis.length, (start // side + 1) * side)
        covered[start // side] += end - start
    return max(covered)


class Carry:
    """The kept parts of windows: probabilities (classes, h, w) and validity (h, w). Does what `schedule` says."""

    def __init__(self) -> None:
        self.parts: dict[tuple[Box, Box], tuple[NDArray[np.float32], NDArray[np.bool_]]] = {}

    def keep(self, step: Step, values: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
        """Copies what later blocks will take of a window that was run."""
        assert step.window is not None
        for part in step.keep:
            rows, columns = part.relative_to(step.window).slices
            self.parts[step.window, part] = apart(values[:, rows, columns]), valid[rows, columns].copy()

    def take(self, step: Step) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
        """What was kept of a window for this block; None where the window had nothing to say."""
        assert step.window is not None
        assert step.part is not None
        return self.parts.get((step.window, step.part))

    def forget(self, block: Box) -> None:
        """Drops what only this block, or those before it, needed."""
        for key in [key for key in self.parts if not needed_after(key[1], block)]:
            del self.parts[key]


def apart(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A copy in pages of its own, which go back to the system with it.

    Kept parts come in many sizes and live long: among what windows leave behind they would make a heap of holes.
    """
    pages = mmap.mmap(-1, max(1, values.nbytes), **_PRIVATE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    copy: NDArray[np.float32] = np.frombuffer(pages, values.dtype, values.size).reshape(values.shape)
    copy[...] = values
    return copy


def needed_after(part: Box, block: Box) -> bool:
    """Whether a kept part reaches into a block that comes after this one."""
    return part.bottom > block.bottom or (part.bottom > block.y and part.right > block.right)


def _beyond(window: Box, block: Box, grid: Grid) -> Iterator[Box]:
    """What of a window lies, inside the image, to the right of a block and below it."""
    image = grid.size.box
    right = _between(max(window.y, block.y), block.right, min(window.bottom, block.bottom), window.right)
    below = _between(block.bottom, window.x, window.bottom, window.right)
    for part in (right, below):
        inside = part.intersect(window) if part else None
        common = inside.intersect(image) if inside else None
        if common is not None:
            yield common


def _bytes(part: Box, classes: int) -> int:
    return part.pixels * (classes * FLOAT + 1)


def _between(top: int, left: int, bottom: int, right: int) -> Box | None:
    return Box.between(top, left, bottom, right) if top < bottom and left < right else None
