"""What all readers share: checked boxes, one-line errors, chosen bands, damaged tiles, lazy arrays, pickling."""

from __future__ import annotations

import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from tiling import storage
from tiling.damage import Damage, DamageLog
from tiling.errors import ImageError
from tiling.geometry import Box, Size
from tiling.georef import Georef
from tiling.source import Kind, Level, check_inside

LAZY_SIDE = 1024
"""Lazy chunks are at least this many pixels high and wide, where the image is ..."""
LAZY_PIXELS = 2**24
"""... and stay below this many pixels, unless one tile of the file is larger."""


_SURPRISES = (LookupError, AttributeError, TypeError, ArithmeticError, AssertionError, struct.error, RecursionError)
"""What libraries raise where a file breaks the rules of its format: words for programmers."""


class NoDecoder(ImageError):  # noqa: N818 - it says what is the case
    """A sound file in an encoding that this reader does not know; another reader may."""


class OpenedImage(ABC):
    """A Source whose file is read by `_read` and `_valid`; see `tiling.source.Source` for what each field means."""

    kind: Kind
    path: str
    name: str
    dtype: np.dtype[Any]
    bands: tuple[str, ...]
    levels: tuple[Level, ...]
    georef: Georef
    provenance: Mapping[str, str]
    strict: bool = True
    """Whether a tile that cannot be decoded is an error; else it is no data, and told in `warnings`."""

    def __init__(self, path: str | os.PathLike[str], *, indexed: bool = False) -> None:
        self.path = os.fspath(path)
        self.name = short_name(self.path)
        self._indexed = indexed
        self._notes: tuple[str, ...] = ()
        self._damages = DamageLog()
        self._chosen: tuple[str, ...] = ()
        self._kept: list[int] | None = None

    @classmethod
    @abstractmethod
    def accepts(cls, path: str) -> bool:
        """Whether this reader takes the file, from its first bytes or its ending: cheap, and never an error."""

    @classmethod
    def rescues(cls, path: str) -> bool:  # noqa: ARG003 - most readers take what they accept, and nothing else
        """Whether this reader may take a file that no reader accepted, or that has an encoding unknown to its own."""
        return False

    @abstractmethod
    def _read(self, box: Box, level: int) -> NDArray[Any]:
        """`read` for a box that is known to lie inside; may raise anything."""

    @abstractmethod
    def _valid(self, box: Box, level: int) -> NDArray[np.bool_]:
        """`valid` for a box that is known to lie inside; may raise anything."""

    @abstractmethod
    def close(self) -> None:
        """Releases file handles. Reading again re-opens them."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know about how the file was understood, and what of it turned out to be damaged."""
        return (*self._notes, *(f"{self.name}: {line}" for line in self._damages.lines))

    @property
    def damage(self) -> tuple[Damage, ...]:
        """Tiles that could not be decoded so far, where the image is not `strict`."""
        return self._damages.found

    def note_damage(self, damages: Iterable[Damage]) -> None:
        """Takes over what others, a worker or an earlier run, found damaged: no data here too, and told."""
        self._damages.add(damages)

    @property
    def working_bytes(self) -> int:
        """Bytes that reading needs or keeps for itself, beside what it returns; a whole image where it has no tiles."""
        chunk = self.levels[0].chunk
        return 2 * chunk.pixels * len(self.bands) * self.dtype.itemsize

    def choose(self, bands: Sequence[str]) -> None:
        """Keeps these bands, in this order, as if the file held no others: by name, or by number from 1.

        A band may be named more than once. Raises ImageError for a band that the image does not have.
        """
        places = [find_band(self.path, self.bands, str(band)) for band in bands]
        self._chosen = tuple(str(place + 1) for place in places)
        self.bands = tuple(self.bands[place] for place in places)
        self._keep(places)

    def _keep(self, places: list[int]) -> None:
        """For readers that can leave bands unread; else they are dropped after reading."""
        self._kept = places

    def read(self, box: Box, level: int = 0) -> NDArray[Any]:
        """Pixels of `box` (in that level's pixels), (H, W, bands), in the file's own dtype; ImageError if it cannot.

        Where the image is not `strict`, a tile that cannot be decoded is zero, and no data.
        """
        check_inside(self, box, level)
        with one_line(f"{self.path}: cannot read {box} of level {level}"):
            if self.strict:
                return self._read_kept(box, level)
            blank = np.zeros((box.height, box.width, len(self.bands)), self.dtype)
            return self._sound_parts(self._read_kept, box, level, blank)

    def valid(self, box: Box, level: int = 0) -> NDArray[np.bool_]:
        """(H, W): True where a pixel is data; ImageError where that cannot be read."""
        check_inside(self, box, level)
        with one_line(f"{self.path}: cannot read the mask of {box} of level {level}"):
            if self.strict:
                return self._valid(box, level)
            valid = self._sound_parts(self._valid, box, level, np.zeros((box.height, box.width), np.bool_))
        for damaged in self._damages.touching(level, box):
            common = damaged.intersect(box)
            assert common is not None
            valid[common.relative_to(box).slices] = False
        return valid

    def _read_kept(self, box: Box, level: int) -> NDArray[Any]:
        pixels = self._read(box, level)
        return pixels if self._kept is None else np.ascontiguousarray(pixels[..., self._kept])

    def _sound_parts(
        self, read: Callable[[Box, int], NDArray[Any]], box: Box, level: int, blank: NDArray[Any]
    ) -> NDArray[Any]:
        """What `read` gives for `box`; or tile by tile what can be decoded of it, the rest being `blank` and noted."""
        if not self._damages.touching(level, box):
            try:
                return read(box, level)
            except MemoryError:
                raise
            except Exception:
                self._check_unchanged()
        for tile in tiles_of(self.levels[level], box):
            part = tile.intersect(box)
            assert part is not None
            if self._damages.touching(level, part):
                continue
            try:
                blank[part.relative_to(box).slices] = read(part, level)
            except MemoryError:
                raise
            except Exception as error:
                self._check_unchanged()
                self._damages.add([Damage(level, tile, said_by(error))])
        return blank

    def _check_unchanged(self) -> None:
        """Raises ImageError where the file is gone: that is no damaged tile."""
        if not storage.exists(self.path):
            raise ImageError("the file is gone")

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
        return _reopen, (type(self), storage.absolute(self.path), self._indexed, self._chosen, self.strict)

    def __dask_tokenize__(self) -> tuple[object, ...]:
        return type(self).__name__, storage.absolute(self.path), storage.stamp(self.path), self._chosen

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
        kind = type(error) if isinstance(error, ImageError) else ImageError
        raise kind(f"{what}: {said_by(error)}") from error


def said_by(error: BaseException) -> str:
    """An error's own words, in one line."""
    while error.__cause__ is not None and "previous exception" in str(error):  # rasterio's way of saying nothing
        error = error.__cause__
    lines = str(error).strip().splitlines()
    said = lines[0][:300] if lines else ""
    if isinstance(error, _SURPRISES):
        return f"the file is damaged, or not of the kind that it says ({type(error).__name__}: {said})"
    return said or type(error).__name__


def find_band(path: str, bands: Sequence[str], wanted: str) -> int:
    """Index of the band of that name, whatever its case, or of that number from 1; raises ImageError for another."""
    wanted = wanted.strip()
    names = [name.lower() for name in bands]
    if wanted in bands:
        return bands.index(wanted)
    if wanted.lower() in names:
        return names.index(wanted.lower())
    if wanted.isdecimal() and 1 <= int(wanted) <= len(bands):
        return int(wanted) - 1
    raise ImageError(f"{path} has no band {wanted!r}; it has {listed(bands)}; choose by name, or by number from 1")


def listed(bands: Sequence[str], most: int = 8) -> str:
    """'3 bands (red, green, blue)'; of many, the first ones and the last."""
    names = [*bands[: most - 1], "...", bands[-1]] if len(bands) > most else bands
    return f"{len(bands)} band{'s' if len(bands) != 1 else ''} ({', '.join(names)})"


def tiles_of(level: Level, box: Box) -> Iterator[Box]:
    """The file's tiles that a box touches, cut at the level's edge."""
    tile = level.chunk
    for y in range(box.y // tile.height * tile.height, box.bottom, tile.height):
        for x in range(box.x // tile.width * tile.width, box.right, tile.width):
            yield Box.between(y, x, min(y + tile.height, level.size.height), min(x + tile.width, level.size.width))


def all_but(box: Box, left_out: Iterable[Box]) -> NDArray[np.bool_]:
    """(H, W) of a box: False in the tiles that a file leaves out."""
    there = np.ones((box.height, box.width), dtype=np.bool_)
    for tile in left_out:
        common = tile.intersect(box)
        if common is not None:
            there[common.relative_to(box).slices] = False
    return there


def short_name(path: str) -> str:
    """The file name without its ending: 'a/b.ome.tif' -> 'b'; never empty, '.' or '..': '...png' -> '_png'."""
    path = storage.restored(path)
    if storage.is_url(path):
        path = unquote(path.partition("?")[0])
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


def _reopen(reader: type[OpenedImage], path: str, indexed: bool, chosen: Sequence[str], strict: bool) -> OpenedImage:
    source = reader(path, indexed=indexed)
    if chosen:
        source.choose(chosen)
    source.strict = strict
    return source


def _read_block(source: OpenedImage, level: int, block_info: Any = None) -> NDArray[Any]:
    (top, bottom), (left, right), _ = block_info[None]["array-location"]
    return source.read(Box.between(top, left, bottom, right), level)
