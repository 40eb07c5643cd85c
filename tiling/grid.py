"""The one grid of windows over an image, and its blocks. Arithmetic only: no pixels are touched here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tiling.geometry import Box, Size


@dataclass(frozen=True, slots=True)
class Axis:
    """Windows along one axis: a stride apart from 0, the last one moved back so that it ends at the edge.

    A length that is no longer than the window has one window, at 0, which may reach beyond the edge.
    """

    length: int
    window: int
    stride: int

    def __post_init__(self) -> None:
        if min(self.length, self.window, self.stride) <= 0 or self.stride > self.window:
            raise ValueError(f"windows must be positive and leave no gap, got {self}")

    @property
    def count(self) -> int:
        return 1 + max(0, -(-(self.length - self.window) // self.stride))

    def start(self, index: int) -> int:
        """First pixel of window `index`."""
        return max(0, min(index * self.stride, self.length - self.window))

    def touching(self, begin: int, end: int) -> range:
        """Indices of the windows that share a pixel with begin..end-1."""
        first = max(0, (begin - self.window) // self.stride + 1)
        last = min(self.count - 1, (end - 1) // self.stride)
        # The last window was moved back, so it may reach pixels that its own stride position would not.
        if self.start(self.count - 1) < end:
            last = self.count - 1
        return range(min(first, self.count - 1), last + 1)


@dataclass(frozen=True, slots=True)
class Grid:
    """Windows over a whole image, whatever the blocks: a pixel's windows do not depend on who computes it."""

    size: Size
    """Of the image."""
    window: Size
    overlap: int
    """Pixels that neighbouring windows share at least, on each axis."""

    def __post_init__(self) -> None:
        side = min(self.window.height, self.window.width)
        if not 0 <= self.overlap <= side // 2:
            raise ValueError(f"the overlap must be 0 to half the window ({side // 2} px), got {self.overlap} px")

    @classmethod
    def over(cls, size: Size, window: int, overlap: int, multiple: int = 1) -> Grid:
        """Square windows of `window` pixels, made smaller where the image is: to its side, up to a `multiple`.

        `multiple` is the network's patch; such a window reaches at most multiple - 1 pixels beyond the edge.
        """
        if window < multiple:
            raise ValueError(f"a window of {window} px is smaller than the model's patch of {multiple} px")
        height, width = (min(window, -(-side // multiple) * multiple) for side in (size.height, size.width))
        return cls(size, Size(height, width), min(overlap, height // 2, width // 2))

    @property
    def rows(self) -> Axis:
        return Axis(self.size.height, self.window.height, self.window.height - self.overlap)

    @property
    def columns(self) -> Axis:
        return Axis(self.size.width, self.window.width, self.window.width - self.overlap)

    def __len__(self) -> int:
        return self.rows.count * self.columns.count

    def touching(self, box: Box) -> Iterator[Box]:
        """The windows that share a pixel with `box`, row by row. They may reach beyond the edges of small images."""
        rows, columns = self.rows, self.columns
        for i in rows.touching(box.y, box.bottom):
            for j in columns.touching(box.x, box.right):
                yield Box(rows.start(i), columns.start(j), self.window.height, self.window.width)

    def __iter__(self) -> Iterator[Box]:
        return self.touching(self.size.box)


def blocks(size: Size, side: int) -> Iterator[Box]:
    """Cuts an image into blocks of `side` pixels, row by row; those at the right and bottom edges are smaller."""
    for y in range(0, size.height, side):
        for x in range(0, size.width, side):
            yield Box.between(y, x, min(y + side, size.height), min(x + side, size.width))
