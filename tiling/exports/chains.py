"""Open chains of corners along the borders of blocks: cut from outlines, linked at their ends until they close."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tiling.exports.outlines import Ring

_FULL_TURN: Final = 2 * math.pi


@dataclass(frozen=True, slots=True)
class Side:
    """A side of a block that another block lies beyond."""

    axis: int
    """0: the vertical line x = at; 1: the horizontal line y = at."""
    at: int
    first: bool
    """Whether it is the block's left or top side."""
    start: int
    """Where the pixels along it begin: the block's left column or top row."""
    length: int


def cut(shell: Ring, value: int, sides: Sequence[tuple[Side, NDArray[np.uint8]]]) -> Iterator[Ring]:
    """The chains of an outline, in its direction, without what it shares with neighbours of the same value.

    `sides` are those that it touches, each with the values (length,) on the other side. Chains begin and end on them.
    """
    on = np.zeros(len(shell), bool)
    for side, _ in sides:
        on |= shell[:, side.axis] == side.at
    ring = np.roll(shell, -int(np.argmax(on)), 0)
    stops = [*np.flatnonzero(np.roll(on, -int(np.argmax(on)))).tolist(), len(ring)]
    ring = np.concatenate([ring, ring[:1]])
    for begin, end in pairwise(stops):
        border = _border(ring[begin], ring[end], sides) if end == begin + 1 else None
        if border is None:
            yield ring[begin : end + 1]
        else:
            yield from _kept(ring[begin], ring[end], value, *border)


def simple_rings(ring: Ring) -> list[Ring]:
    """A ring that meets itself at corners, taken apart there into rings that do not.

    A region whose pixels touch at a corner encloses a hole there: its shell and that hole came as one ring.
    """
    keys = ring[:, 1].astype(np.int64) << 32 | ring[:, 0]
    _, index, counts = np.unique(keys, return_inverse=True, return_counts=True)
    if counts.max() == 1:
        return [ring]
    meets = np.flatnonzero(counts[index] > 1)
    rings: list[Ring] = []
    open_at: dict[int, int] = {}
    stack: list[Ring] = []
    ring, meets = np.roll(ring, -int(meets[0]), 0), meets - meets[0]
    for begin, end in zip(meets, [*meets[1:], len(ring)], strict=True):
        corner = int(ring[begin, 1]) << 32 | int(ring[begin, 0])
        if corner in open_at:
            loop = stack[open_at[corner] :]
            del stack[open_at[corner] :]
            open_at = {key: depth for key, depth in open_at.items() if depth < len(stack)}
            rings.append(np.concatenate(loop))
        open_at[corner] = len(stack)
        stack.append(ring[begin:end])
    return [*rings, np.concatenate(stack)]


class Chains:
    """All open chains, by the corners at which they begin and end."""

    def __init__(self) -> None:
        self._corners: dict[tuple[int, int], _Corner] = {}

    def add(self, part: int, value: int, corners: Ring) -> None:
        """Takes the chain of a part, two corners or more."""
        chain = _Chain(part, value, corners)
        self._corners.setdefault(chain.place(0), _Corner()).leaving.append(chain)
        self._corners.setdefault(chain.place(-1), _Corner()).arriving.append(chain)

    def link(self, still_open: int | None) -> Iterator[tuple[int, Ring]]:
        """Links what meets, but on the line y = `still_open`; gives closed rings, each with the number of a part."""
        for place in [place for place in self._corners if place[1] != still_open]:
            corner = self._corners.pop(place)
            for arriving in corner.arriving:
                before, after = arriving.alive(), corner.next_of(arriving.alive())
                if before is after:
                    yield before.part, before.closed()
                else:
                    before.join(after)


class _Chain:
    """Corners in the direction of the outline, in pieces that are put together when the ring closes."""

    def __init__(self, part: int, value: int, corners: Ring) -> None:
        self.part = part
        self.value = value
        self._pieces = deque([corners])
        self._into: _Chain | None = None

    def alive(self) -> _Chain:
        """The chain that this one became a part of."""
        chain = self
        while chain._into is not None:
            chain = chain._into
        return chain

    def join(self, after: _Chain) -> None:
        """Makes one chain of two; the one with fewer pieces moves."""
        if len(self._pieces) >= len(after._pieces):
            self._pieces.extend(after._pieces)
            after._into = self
        else:
            after._pieces.extendleft(reversed(self._pieces))
            self._into = after

    def place(self, end: int) -> tuple[int, int]:
        """(x, y) of its first (0) or last (-1) corner."""
        x, y = self._pieces[end][end].tolist()
        return x, y

    def heading(self) -> float:
        """Direction in which it leaves its first corner; grows clockwise on a screen."""
        x, y = (self._pieces[0][1] - self._pieces[0][0]).tolist()
        return math.atan2(y, x)

    def backward(self) -> float:
        """Direction from its last corner back along it."""
        x, y = (self._pieces[-1][-2] - self._pieces[-1][-1]).tolist()
        return math.atan2(y, x)

    def closed(self) -> Ring:
        return np.concatenate([piece[:-1] for piece in self._pieces])


class _Corner:
    """The chains that meet at a corner of pixels."""

    __slots__ = ("arriving", "leaving")

    def __init__(self) -> None:
        self.arriving: list[_Chain] = []
        self.leaving: list[_Chain] = []

    def next_of(self, chain: _Chain) -> _Chain:
        """How the outline of an arriving chain goes on: around its own pixels, which lie on its left.

        Where two regions, or two ends of one, touch at a corner, each keeps to its side.
        """
        ways = [(index, way.alive()) for index, way in enumerate(self.leaving) if way.value == chain.value]
        if len(ways) > 1:
            back = chain.backward()
            ways = [min(ways, key=lambda way: (way[1].heading() - back) % _FULL_TURN or _FULL_TURN)]
        index, way = ways[0]
        del self.leaving[index]
        return way


def _border(a: Ring, b: Ring, sides: Sequence[tuple[Side, NDArray[np.uint8]]]) -> tuple[Side, NDArray[np.uint8]] | None:
    """The side that the edge from a to b lies on, and the values beyond it."""
    return next(((s, line) for s, line in sides if a[s.axis] == s.at == b[s.axis]), None)


def _kept(a: Ring, b: Ring, value: int, side: Side, beyond: NDArray[np.uint8]) -> Iterator[Ring]:
    """The stretches of a border edge beyond which there is another value."""
    along = 1 - side.axis
    low, high = sorted((int(a[along]), int(b[along])))
    same = beyond[low - side.start : high - side.start] == value
    stops = [low, *(np.flatnonzero(same[1:] != same[:-1]) + low + 1).tolist(), high]
    for begin, end in pairwise(stops):
        if not same[begin - low]:
            ends = np.empty((2, 2), np.int32)
            ends[:, side.axis] = side.at
            ends[:, along] = (begin, end) if a[along] < b[along] else (end, begin)
            yield ends
