"""A finished label image on disk: OME-Zarr 0.5 labels with classes, colours and a place in the world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

NODATA: Final = 255
"""Label of a pixel that is no data; kept apart from every class."""


@dataclass(frozen=True, slots=True)
class LabelClass:
    """What one value of a label image means."""

    value: int
    """0..254, as written in the mask."""
    name: str
    color: tuple[int, int, int]
    """Red, green, blue, 0..255."""

    def __post_init__(self) -> None:
        if not 0 <= self.value < NODATA:
            raise ValueError(f"class {self.name!r} has value {self.value}; values are 0..254 (255 is no data)")
        if not all(0 <= c <= 255 for c in self.color):
            raise ValueError(f"class {self.name!r} has colour {self.color}; write three numbers 0..255")
