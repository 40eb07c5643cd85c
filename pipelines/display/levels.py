"""The zoom levels of an image as a viewer sees them: the file's own, and halves between and beyond. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tiling import Box, Size, Source

TILE: Final = 256
"""Side of a tile where the file has none that suits."""
SMALLEST: Final = 256
"""The levels end at the first one whose longest side is at most this many pixels."""
DIRECT: Final = 2
"""A level this many times coarser than one of the file is made from it for each tile; coarser ones are stored."""


@dataclass(frozen=True, slots=True)
class ZoomLevel:
    """One zoom level; a pixel of it is the mean of `factor` x `factor` pixels of a level of the file."""

    size: Size
    tile: Size
    source: int
    """The file's level that it is made from."""
    factor: int
    step: tuple[float, float]
    """(y, x): how many level-0 pixels one pixel covers."""

    @property
    def native(self) -> bool:
        """Whether its pixels are the file's own."""
        return self.factor == 1

    @property
    def stored(self) -> bool:
        """Whether it is too coarse to be made from the file for each tile."""
        return self.factor > DIRECT

    @property
    def tiles(self) -> tuple[int, int]:
        """(down, across)."""
        return -(-self.size.height // self.tile.height), -(-self.size.width // self.tile.width)

    def box(self, row: int, column: int) -> Box:
        """A tile's pixels, cut at the edge. Raises IndexError where there is no such tile."""
        down, across = self.tiles
        if not (0 <= row < down and 0 <= column < across):
            raise IndexError(f"there is no tile {row}, {column} among {down} x {across}")
        y, x = row * self.tile.height, column * self.tile.width
        return Box.between(y, x, min(y + self.tile.height, self.size.height), min(x + self.tile.width, self.size.width))

    def below(self, box: Box, source: Size) -> Box:
        """The file's pixels, of a level of size `source`, that a box of this level is made from."""
        f = self.factor
        return Box.between(box.y * f, box.x * f, min(box.bottom * f, source.height), min(box.right * f, source.width))


def zoom_levels(source: Source) -> tuple[ZoomLevel, ...]:
    """All levels, finest first: the file's own, halves where two of those lie far apart, and halves to the end."""
    found: list[ZoomLevel] = []
    for index, level in enumerate(source.levels):
        following = source.levels[index + 1].size if index + 1 < len(source.levels) else None
        factor, size = 1, level.size
        while True:
            tile = level.chunk if factor == 1 else Size(TILE, TILE)
            step = (level.scale[0] * factor, level.scale[1] * factor)
            found.append(ZoomLevel(size, _usable(tile), index, factor, step))
            if following is None and max(size.height, size.width) <= SMALLEST:
                return tuple(found)
            factor *= 2
            size = Size(-(-level.size.height // factor), -(-level.size.width // factor))
            # A half that is hardly finer than the file's next level would not be told from it.
            if following is not None and max(size.height / following.height, size.width / following.width) < 1.5:
                break
    return tuple(found)


def _usable(tile: Size) -> Size:
    """The file's tile where it is about square and neither tiny nor huge."""
    sides = (tile.height, tile.width)
    return tile if min(sides) >= 128 and max(sides) <= 1024 else Size(TILE, TILE)
