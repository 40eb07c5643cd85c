"""Sizes and rectangles on a pixel grid, row first. Pure values: no files, no arrays."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """A height and a width in pixels."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.height, self.width) <= 0:
            raise ValueError(f"a size must be positive, got {self.height} x {self.width}")

    @property
    def box(self) -> Box:
        """The rectangle that covers all of it."""
        return Box(0, 0, self.height, self.width)

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def __str__(self) -> str:
        return f"{self.height} x {self.width} px"


@dataclass(frozen=True, slots=True)
class Box:
    """A pixel rectangle, row first: rows y..bottom-1 and columns x..right-1."""

    y: int
    """Top row."""
    x: int
    """Left column."""
    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.height, self.width) <= 0:
            raise ValueError(f"a box must have positive size, got {self.height} x {self.width} at ({self.y}, {self.x})")

    @classmethod
    def between(cls, top: int, left: int, bottom: int, right: int) -> Box:
        """From its edges; bottom and right are exclusive."""
        return cls(top, left, bottom - top, right - left)

    @property
    def bottom(self) -> int:
        """One past the last row."""
        return self.y + self.height

    @property
    def right(self) -> int:
        """One past the last column."""
        return self.x + self.width

    @property
    def size(self) -> Size:
        return Size(self.height, self.width)

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, to index an array laid out (H, W, ...)."""
        return slice(self.y, self.bottom), slice(self.x, self.right)

    def contains(self, other: Box) -> bool:
        return self.y <= other.y and self.x <= other.x and other.bottom <= self.bottom and other.right <= self.right

    def intersect(self, other: Box) -> Box | None:
        """The common rectangle, or None where they do not overlap."""
        top, left = max(self.y, other.y), max(self.x, other.x)
        bottom, right = min(self.bottom, other.bottom), min(self.right, other.right)
        return Box.between(top, left, bottom, right) if top < bottom and left < right else None

    def relative_to(self, origin: Box) -> Box:
        """The same rectangle, counted from another one's top-left corner."""
        return Box(self.y - origin.y, self.x - origin.x, self.height, self.width)

    def grow(self, margin: int, within: Size) -> Box:
        """Larger by `margin` pixels on each side, cut at the edges of an image of size `within`."""
        return Box.between(
            max(self.y - margin, 0),
            max(self.x - margin, 0),
            min(self.bottom + margin, within.height),
            min(self.right + margin, within.width),
        )

    def __str__(self) -> str:
        return f"rows {self.y}..{self.bottom}, columns {self.x}..{self.right}"
