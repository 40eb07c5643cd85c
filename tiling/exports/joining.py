"""Joins the outlines of blocks to regions across the blocks' borders, row by row, in memory that does not grow.

An outline that touches no other block is a region at once. Of the others, what is shared with a neighbour of the same
value is cut away, and the chains that remain are linked at their ends until they close. Closed rings go to a file; a
region is given out as soon as no part of it touches the row of blocks to come. So memory holds the parts and open
chains along two rows of blocks, as corners, whatever the size of a region.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from tiling.exports.chains import Chains, Side, cut, simple_rings
from tiling.exports.outlines import Outline, Ring, without_straight_corners
from tiling.exports.spool import Holes, Refs, Spool
from tiling.geometry import Box, Size
from tiling.labels import NODATA

_NONE: Final = -1
"""Where no part is: no data."""


@dataclass(frozen=True, slots=True)
class Region:
    """One connected region of one value: a valid polygon on the pixel grid."""

    value: int
    shell: Ring
    """From its topmost, then leftmost corner on."""
    holes: Sequence[Ring]
    """They may touch the shell and each other at corners. Read from a file where the region spans blocks."""


class Joiner:
    """Takes the blocks of an image row by row and gives out its regions, each as soon as it is whole."""

    def __init__(self, size: Size, spool: BinaryIO, *, exact: bool = True) -> None:
        """`spool` is an empty file that may be written and read, and must stay open as long as regions are used.

        `exact` says that outlines have all their corners; those that borders of blocks left on straight lines are then
        taken out. Otherwise two outlines may meet at a corner on a straight line, which has to stay.
        """
        self.size = size
        self._exact = exact
        self._spool = Spool(spool)
        self._sets = _Sets()
        self._chains = Chains()
        self._above: _Row | None = None
        self._row: _Row | None = None

    def add(self, box: Box, parts: Sequence[Outline]) -> Iterator[Region]:
        """Takes one block; gives the regions that the end of a row completed, then those that lie inside the block."""
        if self._row is None or self._row.top != box.y:
            yield from self._next_row(box)
        assert self._row is not None
        sides = [s for s in _sides(box) if 0 < s.at < (self.size.width, self.size.height)[s.axis]]
        for part in parts:
            first, last = part.shell.min(axis=0).tolist(), part.shell.max(axis=0).tolist()
            touched = [s for s in sides if s.at == (first if s.first else last)[s.axis]]
            if touched:
                number = self._sets.add(part.value, map(self._spool.put, part.holes))
                self._row.add(number, part, touched)
            else:
                yield Region(part.value, from_the_top(part.shell), part.holes)

    def finish(self) -> Iterator[Region]:
        """The regions that are left after the last block."""
        yield from self._next_row(None)
        yield from self._settle(None)

    def _next_row(self, box: Box | None) -> Iterator[Region]:
        """Settles the row above the one that ended, now that its neighbours on all sides are known."""
        yield from self._settle(self._row)
        self._above = self._row
        self._row = _Row(box.y, box.bottom, self.size.width) if box else None

    def _settle(self, below: _Row | None) -> Iterator[Region]:
        """Cuts and links the parts of the row above; gives out what does not reach `below`."""
        row = self._above
        if row is None:
            return
        for here, there in row.meetings(below):
            self._sets.unite_along(here, there)
        for number, part, touched in row.parts:
            for chain in cut(part.shell, part.value, [(s, row.beyond(s, below)) for s in touched]):
                self._chains.add(number, part.value, chain)
        for number, ring in self._chains.link(row.bottom if below else None):
            for simple in simple_rings(ring):
                corners = without_straight_corners(simple) if self._exact else simple
                self._sets.keep(number, self._spool.put(corners))
        if below is not None:
            below.above = row.lower
        for value, rings in self._sets.finished([*row.reaching(row.bottom), *below.numbers] if below else []):
            yield self._region(value, rings)

    def _region(self, value: int, rings: Refs) -> Region:
        shells = rings.shells()
        assert len(shells) == 1, f"a region of value {value} has {len(shells)} shells"
        shell = from_the_top(self._spool.get(rings, shells[0]))
        return Region(value, shell, Holes(self._spool, rings, shells[0]))


def from_the_top(ring: Ring) -> Ring:
    """The same ring, from its topmost, then leftmost corner on: however it was put together."""
    top = int(np.argmin(ring[:, 1].astype(np.int64) << 32 | ring[:, 0]))
    return np.concatenate([ring[top:], ring[:top]]) if top else ring


def _sides(box: Box) -> list[Side]:
    return [
        Side(0, box.x, True, box.y, box.height),
        Side(0, box.right, False, box.y, box.height),
        Side(1, box.y, True, box.x, box.width),
        Side(1, box.bottom, False, box.x, box.width),
    ]


class _Line:
    """The pixels along one side of a border: which part each belongs to, and its value."""

    def __init__(self, start: int, length: int) -> None:
        self.start = start
        self.parts = np.full(length, _NONE, np.int64)
        self.values = np.full(length, NODATA, np.uint8)

    def paint(self, low: int, high: int, number: int, value: int) -> None:
        self.parts[low - self.start : high - self.start] = number
        self.values[low - self.start : high - self.start] = value


class _Row:
    """The parts of one row of blocks that touch other blocks, and the pixels beside its borders."""

    def __init__(self, top: int, bottom: int, width: int) -> None:
        self.top = top
        self.bottom = bottom
        self.parts: list[tuple[int, Outline, list[Side]]] = []
        self.upper = _Line(0, width)
        """Its first row of pixels."""
        self.lower = _Line(0, width)
        """Its last."""
        self.beside: dict[tuple[int, bool], _Line] = {}
        """By x of a vertical border, and whether the pixels lie to the right of it."""
        self.above: _Line | None = None
        """`lower` of the row above."""

    @property
    def numbers(self) -> list[int]:
        return [number for number, _, _ in self.parts]

    def reaching(self, y: int) -> list[int]:
        """The parts whose outline may not be closed before what lies below y is known."""
        return [number for number, _, touched in self.parts if any(s.axis == 1 and s.at == y for s in touched)]

    def add(self, number: int, part: Outline, touched: list[Side]) -> None:
        """Notes a part and the pixels of it that lie beside borders."""
        self.parts.append((number, part, touched))
        shell, ends = part.shell, np.roll(part.shell, -1, 0)
        for s in touched:
            line = self.line(s.axis, s.at, s.first)
            on = np.flatnonzero((shell[:, s.axis] == s.at) & (ends[:, s.axis] == s.at))
            for low, high in np.sort([shell[on, 1 - s.axis], ends[on, 1 - s.axis]], axis=0).T.tolist():
                line.paint(low, high, number, part.value)

    def line(self, axis: int, at: int, first: bool) -> _Line:
        """The pixels beside a border: below it or to the right (`first` of their block), or above or to the left."""
        if axis == 1:
            return self.upper if first else self.lower
        if (at, first) not in self.beside:
            self.beside[at, first] = _Line(self.top, self.bottom - self.top)
        return self.beside[at, first]

    def beyond(self, s: Side, below: _Row | None) -> NDArray[np.uint8]:
        """The values on the other side of a block's side, over the length of that side."""
        if s.axis == 0:
            return self.line(0, s.at, not s.first).values
        other = self.above if s.first else below.upper if below else None
        assert other is not None, "a row is settled when both its neighbours are known"
        return other.values[s.start : s.start + s.length]

    def meetings(self, below: _Row | None) -> list[tuple[_Line, _Line]]:
        """The pixels on both sides of each border inside the row and below it."""
        inside = [(self.line(0, at, False), self.line(0, at, True)) for at in {at for at, _ in self.beside}]
        return [*inside, *([(self.lower, below.upper)] if below else [])]


@dataclass(slots=True)
class _Held:
    """What is known of a region that is not whole."""

    value: int
    rings: Refs


class _Sets:
    """Which parts are one region, and that region's closed rings: union-find by number of rings, with path halving."""

    def __init__(self) -> None:
        self._parent = array("q")
        self._held: dict[int, _Held] = {}

    def add(self, value: int, holes: Iterator[tuple[int, int, int]]) -> int:
        """A new part's number; its holes are closed rings already."""
        number = len(self._parent)
        self._parent.append(number)
        self._held[number] = _Held(value, Refs())
        for place in holes:
            self._held[number].rings.append(place)
        return number

    def find(self, number: int) -> int:
        parent = self._parent
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    def unite_along(self, here: _Line, there: _Line) -> None:
        """Makes one of parts of the same value that meet at a border."""
        meet = (here.parts != _NONE) & (here.values == there.values)
        for a, b in np.unique(np.stack([here.parts[meet], there.parts[meet]], 1), axis=0).tolist():
            self._unite(self.find(a), self.find(b))

    def keep(self, number: int, place: tuple[int, int, int]) -> None:
        """Adds a closed ring to the region that a part belongs to."""
        self._held[self.find(number)].rings.append(place)

    def finished(self, going_on: Sequence[int]) -> Iterator[tuple[int, Refs]]:
        """Value and rings of the regions that hold none of the parts that go on; they are forgotten."""
        alive = {self.find(number) for number in going_on}
        for root in [root for root in self._held if root not in alive]:
            held = self._held.pop(root)
            yield held.value, held.rings

    def _unite(self, a: int, b: int) -> None:
        if a == b:
            return
        if len(self._held[a].rings) < len(self._held[b].rings):
            a, b = b, a
        self._parent[b] = a
        self._held[a].rings.extend(self._held.pop(b).rings)
