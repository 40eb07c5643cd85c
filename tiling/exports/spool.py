"""Closed rings of regions that are not whole yet: in a file, so that a region with a million holes costs no memory."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import BinaryIO, overload

import numpy as np

from tiling.exports.outlines import Ring, area2


class Refs:
    """Rings of one region that lie in a spool: where, how many corners, and twice their area."""

    def __init__(self) -> None:
        self._numbers = array("q")

    def append(self, place: tuple[int, int, int]) -> None:
        self._numbers.extend(place)

    def extend(self, other: Refs) -> None:
        self._numbers.extend(other._numbers)

    def __len__(self) -> int:
        return len(self._numbers) // 3

    def place(self, index: int) -> tuple[int, int]:
        """(offset in bytes, number of corners)."""
        return self._numbers[3 * index], self._numbers[3 * index + 1]

    def shells(self) -> list[int]:
        """Indices of the rings that run the way shells do."""
        return np.flatnonzero(np.frombuffer(self._numbers, np.int64)[2::3] > 0).tolist()


class Spool:
    """Rings in a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._end = 0

    def put(self, ring: Ring) -> tuple[int, int, int]:
        """Where it lies, how many corners it has, and twice its area. Raises OSError where the disk is full."""
        offset = self._end
        self._file.seek(offset)
        self._file.write(np.ascontiguousarray(ring, np.int32).tobytes())
        self._end += 8 * len(ring)
        return offset, len(ring), area2(ring)

    def get(self, refs: Refs, index: int) -> Ring:
        offset, count = refs.place(index)
        self._file.seek(offset)
        return np.frombuffer(self._file.read(8 * count), np.int32).reshape(count, 2)


class Holes(Sequence[Ring]):
    """All rings of a region but its shell, read one by one."""

    def __init__(self, spool: Spool, refs: Refs, shell: int) -> None:
        self._spool, self._refs, self._shell = spool, refs, shell

    def __len__(self) -> int:
        return len(self._refs) - 1

    @overload
    def __getitem__(self, index: int) -> Ring: ...
    @overload
    def __getitem__(self, index: slice) -> list[Ring]: ...
    def __getitem__(self, index: int | slice) -> Ring | list[Ring]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} holes, number {index} was asked for")
        return self._spool.get(self._refs, index if index < self._shell else index + 1)
