"""Images that are stored rotated or mirrored, as TIFF's and EXIF's Orientation says: boxes and pixels made upright."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tiling.geometry import Box, Size

UPRIGHT: Final = 1
_ROWS_FLIPPED: Final = {3, 4, 6, 7}
_COLUMNS_FLIPPED: Final = {2, 3, 7, 8}


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a stored image must be turned: its rows flipped, its columns flipped, then both swapped (from 5 on)."""

    value: int
    """1..8, as in TIFF and EXIF; 1 is upright."""

    def __post_init__(self) -> None:
        if not 1 <= self.value <= 8:
            raise ValueError(f"an orientation is 1 to 8, got {self.value}")

    @classmethod
    def of_tag(cls, value: object) -> Orientation:
        """From a tag's value; what is no orientation counts as upright, as other programs have it."""
        number = int(value) if isinstance(value, int | np.integer) else UPRIGHT
        return cls(number if 1 <= number <= 8 else UPRIGHT)

    @property
    def swaps(self) -> bool:
        """Whether height and width are exchanged."""
        return self.value >= 5

    def size(self, stored: Size) -> Size:
        """The upright size of a stored one."""
        return Size(stored.width, stored.height) if self.swaps else stored

    def stored(self, box: Box, stored: Size) -> Box:
        """Where the pixels of an upright box lie in the stored image, which has the size `stored`."""
        y, x, height, width = box.y, box.x, box.height, box.width
        if self.swaps:
            y, x, height, width = x, y, width, height
        if self.value in _ROWS_FLIPPED:
            y = stored.height - y - height
        if self.value in _COLUMNS_FLIPPED:
            x = stored.width - x - width
        return Box(y, x, height, width)

    def upright(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Stored pixels (H, W, ...) made upright."""
        if self.value == UPRIGHT:
            return pixels
        rows = slice(None, None, -1) if self.value in _ROWS_FLIPPED else slice(None)
        columns = slice(None, None, -1) if self.value in _COLUMNS_FLIPPED else slice(None)
        flipped = pixels[rows, columns]
        return np.ascontiguousarray(flipped.swapaxes(0, 1) if self.swaps else flipped)
