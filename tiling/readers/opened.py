"""What all readers share: checked boxes, one-line errors, lazy arrays, pickling by path."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from tiling.errors import ImageError
from tiling.geometry import Box, Size
from tiling.georef import Georef
from tiling.source import Kind, Level, check_inside

LAZY_SIDE = 1024
"""Lazy chunks are at least this many pixels high and wide, where the image is ..."""
LAZY_PIXELS = 2**24
"""... and stay below this many pixels, unless one tile of the file is larger."""


class OpenedImage(ABC):
    """A Source whose file is read by `_read` and `_valid`; see `tiling.source.Source` for what each field means."""

    kind: Kind
    path: str
    name: str
    dtype: np.dtype[Any]
    bands: tuple[str, ...]
    levels: tuple[Level, ...]
    georef: Georef
    warnings: tuple[str, ...]
    provenance: Mapping[str, str]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.name = short_name(self.path)

    @classmethod
    @abstractmethod
    def accepts(cls, path: str) -> bool:
        """Whether this reader takes the file, from its first bytes or its ending: cheap, and never an error."""

    @abstractmethod
    def _read(self, box: Box, level: int) -> NDArray[Any]:
        """`read` for a box that is known to lie inside; may raise anything."""

    @abstractmethod
    def _valid(self, box: Box, level: int) -> NDArray[np.bool_]:
        """`valid` for a box that is known to lie inside; may raise anything."""

    @abstractmethod
    def close(self) -> None:
        """Releases file handles. Reading again re-opens them."""

    def read(self, box: Box, level: int = 0) -> NDArray[Any]:
        """Pixels of `box` (in that level's pixels), (H, W, bands), in the file's own dtype; ImageError if it cannot."""
        check_inside(self, box, level)
        with one_line(f"{self.path}: cannot read {box} of level {level}"):
            return self._read(box, level)

    def valid(self, box: Box, level: int = 0) -> NDArray[np.bool_]:
        """(H, W): True where a pixel is data; ImageError where that cannot be read."""
        check_inside(self, box, level)
        with one_line(f"{self.path}: cannot read the mask of {box} of level {level}"):
            return self._valid(box, level)

    def blank(self, box: Box, level: int = 0) -> bool:  # noqa: ARG002 - readers that know better say so
        """Whether it is known without reading that `valid` is False all over `box`."""
        return False

    def dask(self, level: int = 0) -> da.Array:
        """The same pixels as `read`, lazily: (H, W, bands), chunks on the file's tile borders."""
        size = self.levels[level].size
        rows, columns = lazy_chunks(self.levels[level])
        lazy: da.Array = da.map_blocks(  # type: ignore[no-untyped-call]
            _read_block,
            chunks=(_split(size.height, rows), _split(size.width, columns), (len(self.bands),)),
            dtype=self.dtype,
            meta=np.empty((0, 0, 0), self.dtype),
            source=self,
            level=level,
        )
        return lazy

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker may run in another folder, so the path travels absolute.
        return type(self), (str(Path(self.path).absolute()),)

    def __dask_tokenize__(self) -> tuple[object, ...]:
        stat = Path(self.path).stat()
        return type(self).__name__, str(Path(self.path).absolute()), stat.st_mtime_ns, stat.st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        bands = f"{len(self.bands)} band{'s' if len(self.bands) != 1 else ''}"
        return f"<{self.kind} {self.path!r}: {self.levels[0].size}, {bands} {self.dtype}, {len(self.levels)} level(s)>"


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turns whatever goes wrong inside into ImageError(f'{what}: {cause}').

    Decoders raise nearly any type on broken bytes (struct.error, AttributeError, their own); running out of memory is
    not the file's fault and passes.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None and "previous exception" in str(cause):  # rasterio's way of saying nothing
            cause = cause.__cause__
        lines = str(cause).strip().splitlines()
        raise ImageError(f"{what}: {lines[0][:300] if lines else type(cause).__name__}") from error


def short_name(path: str) -> str:
    """The file name without its ending: 'a/b.ome.tif' -> 'b'; never empty, '.' or '..': '...png' -> '_png'."""
    name = path.rstrip("/").rsplit("/", 1)[-1]
    stem = Path(name).stem
    stem = stem[:-4] if stem.lower().endswith(".ome") else stem
    return stem if stem.strip(".") else f"_{name.lstrip('.')}"


def lazy_chunks(level: Level) -> tuple[int, int]:
    """(rows, columns) of a lazy chunk: whole tiles of the file, of a size worth a task."""
    columns = _whole_tiles(LAZY_SIDE, level.chunk.width, level.size.width)
    rows_wanted = min(LAZY_SIDE, max(1, LAZY_PIXELS // columns))
    return _whole_tiles(rows_wanted, level.chunk.height, level.size.height), columns


def level_scale(full: Size, size: Size) -> tuple[float, float]:
    """(y, x) level-0 pixels per pixel of a level of `size`: every level spans the whole image."""
    return full.height / size.height, full.width / size.width


def _whole_tiles(wanted: int, tile: int, size: int) -> int:
    return min(size, tile * max(1, -(-wanted // tile)))


def _split(size: int, step: int) -> tuple[int, ...]:
    return tuple(min(step, size - start) for start in range(0, size, step))


def _read_block(source: OpenedImage, level: int, block_info: Any = None) -> NDArray[Any]:
    (top, bottom), (left, right), _ = block_info[None]["array-location"]
    return source.read(Box.between(top, left, bottom, right), level)
