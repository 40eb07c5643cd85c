"""Parts of an image that cannot be decoded: where they are and why, kept while the rest is read."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tiling.geometry import Box

_TOLD: Final = 20
"""Places that are told one by one; of more, only how many they are."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A tile or strip that is there and cannot be decoded."""

    level: int
    box: Box
    """In pixels of the level."""
    reason: str
    """One line, what the decoder said."""

    def __str__(self) -> str:
        return f"{self.box} of level {self.level} cannot be decoded, and is taken as no data ({self.reason})"


class DamageLog:
    """What was found damaged so far. Threads may add and ask at once."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, Box], Damage] = {}
        self._lock = threading.Lock()

    def add(self, damages: Iterable[Damage]) -> None:
        """Notes damages; one that is known already is noted once."""
        with self._lock:
            for damage in damages:
                self._found.setdefault((damage.level, damage.box), damage)

    @property
    def found(self) -> tuple[Damage, ...]:
        """From fine levels to coarse ones, then row by row: the same however many threads found them."""
        with self._lock:
            return tuple(sorted(self._found.values(), key=lambda d: (d.level, d.box.y, d.box.x)))

    def touching(self, level: int, box: Box) -> list[Box]:
        """The damaged boxes of a level that `box` touches."""
        if not self._found:
            return []
        return [d.box for d in self.found if d.level == level and d.box.intersect(box) is not None]

    @property
    def lines(self) -> list[str]:
        """For people: the first places, and how many more there are."""
        found = self.found
        more = [f"{len(found) - _TOLD} more places cannot be decoded"] if len(found) > _TOLD else []
        return [str(damage) for damage in found[:_TOLD]] + more
