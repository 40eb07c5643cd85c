"""What an opened image is. Read this first: readers make a Source, everything else uses one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from tiling.damage import Damage
from tiling.errors import ImageError
from tiling.geometry import Box, Size
from tiling.georef import Georef

Kind = Literal["slide", "raster", "array"]


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of an image; level 0 is the finest."""

    size: Size
    chunk: Size
    """The file's own tile at this level (or strip), what one read decodes at least."""
    scale: tuple[float, float]
    """(y, x): how many level-0 pixels one pixel of this level covers. (1, 1) at level 0."""


@runtime_checkable
class Source(Protocol):
    """An opened image. Opening read headers only; it pickles as its path and options, and re-opens where it lands."""

    path: str
    """Where it was opened: a path or URL, or '<array>'."""
    name: str
    """Short name for outputs: the file name without its ending."""
    kind: Kind
    dtype: np.dtype[Any]
    bands: tuple[str, ...]
    """A name for each band: 'red', 'green', 'blue', or what the file says, or 'band 1' ..."""
    levels: tuple[Level, ...]
    georef: Georef
    """Of level 0."""
    provenance: Mapping[str, str]
    """Technical facts for the record (format, compression ...). Never names, labels, dates or serial numbers."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know about how the file was understood, and what turned out to be damaged; a line each."""
        ...

    @property
    def damage(self) -> tuple[Damage, ...]:
        """Tiles that could not be decoded so far, where the image was not opened as `strict`."""
        ...

    def note_damage(self, damages: Iterable[Damage]) -> None:
        """Takes over what others found damaged: no data here too, and told in `warnings`."""
        ...

    def choose(self, bands: Sequence[str]) -> None:
        """Keeps these bands, in this order, as if the file held no others: by name, or by number from 1.

        Raises ImageError for a band that the image does not have.
        """
        ...

    @property
    def working_bytes(self) -> int:
        """Bytes that reading needs or keeps for itself, beside what it returns; a whole image where it has no tiles."""
        ...

    def read(self, box: Box, level: int = 0) -> NDArray[Any]:
        """Pixels of `box` (in that level's pixels) as (H, W, bands) in the file's own dtype.

        Raises ImageError for a box that leaves the level, or for data that cannot be decoded; where the image was not
        opened as strict, a tile that cannot be decoded is zero and no data, and `damage` tells it.
        """
        ...

    def valid(self, box: Box, level: int = 0) -> NDArray[np.bool_]:
        """(H, W): True where a pixel is data: not nodata, not NaN, not masked, not fully transparent."""
        ...

    def blank(self, box: Box, level: int = 0) -> bool:
        """Whether it is known without reading that `valid` is False all over `box`: a file may leave tiles out."""
        ...

    def dask(self, level: int = 0) -> da.Array:
        """The same pixels as `read`, lazily: (H, W, bands), chunks on the file's tile borders."""
        ...

    def close(self) -> None:
        """Releases file handles. Reading again re-opens them."""
        ...


def check_inside(source: Source, box: Box, level: int) -> None:
    """Raises ImageError unless `box` lies inside `level` of `source`."""
    if not 0 <= level < len(source.levels):
        raise ImageError(f"{source.path}: level {level} was asked for, but it has levels 0..{len(source.levels) - 1}")
    size = source.levels[level].size
    if not size.box.contains(box):
        raise ImageError(f"{source.path}: {box} leaves level {level}, which is {size}; read inside it, or pad")
