"""Tiles of slides that are JPEG in the file already: handed on as they are, never decoded."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from pathlib import Path

from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile, TiffPage

from pipelines.display.jpeg import NotJpegError, standalone
from tiling import Size, Source
from tiling.readers import tiff_tags

_COLOURS: dict[int, bool | None] = {PHOTOMETRIC.RGB: False, PHOTOMETRIC.YCBCR: True, PHOTOMETRIC.MINISBLACK: None}
"""How components are to be read: as `standalone` takes it."""


@dataclass(frozen=True, slots=True)
class _Level:
    """Where the tiles of one level lie in the file."""

    size: Size
    tile: Size
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    tables: bytes | None
    ycbcr: bool | None


class JpegTiles:
    """The JPEG tiles of a slide's levels, read by place; safe to use from several threads."""

    def __init__(self, path: str, levels: list[_Level | None]) -> None:
        self._levels = levels
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._closer = weakref.finalize(self, os.close, self._file)

    @classmethod
    def open(cls, source: Source) -> JpegTiles | None:
        """Those of a slide; None where no level has tiles that a browser shows as they are."""
        if source.kind != "slide" or not Path(source.path).is_file():
            return None
        try:
            with TiffFile(source.path) as tif:
                series = tiff_tags.pyramid(tiff_tags.baseline(tif))
                levels = [_level(level.keyframe) for level in series] if not tif.is_ndpi else []
        except Exception:  # a file that tifffile does not like is read, or refused, by its reader
            return None
        wanted = [(level.size, level.chunk) for level in source.levels]
        found = [None if level is None or (level.size, level.tile) not in wanted else level for level in levels]
        by_size = {level.size: level for level in found if level}
        matched = [by_size.get(size) for size, _ in wanted]
        return cls(source.path, matched) if any(matched) else None

    def tile(self, level: int, row: int, column: int) -> bytes | None:
        """A JPEG file; None where the tile has to be decoded: it is missing, damaged, or reaches beyond the edge."""
        known = self._levels[level]
        if known is None or (row + 1) * known.tile.height > known.size.height:
            return None
        if (column + 1) * known.tile.width > known.size.width:
            return None
        index = row * -(-known.size.width // known.tile.width) + column
        offset, count = known.offsets[index], known.counts[index]
        if offset == 0 or count == 0:
            return None
        try:
            return standalone(os.pread(self._file, count, offset), known.tables, known.ycbcr)
        except NotJpegError:
            return None

    def close(self) -> None:
        self._closer()


def _level(page: TiffPage) -> _Level | None:
    plain = page.compression == COMPRESSION.JPEG and page.bitspersample == 8 and page.is_tiled
    samples = 1 if page.photometric == PHOTOMETRIC.MINISBLACK else 3
    if not plain or page.planarconfig != 1 or page.photometric not in _COLOURS or page.samplesperpixel != samples:
        return None
    size, tile = Size(page.imagelength, page.imagewidth), Size(page.tilelength, page.tilewidth)
    needed = -(-size.height // tile.height) * -(-size.width // tile.width)
    if min(len(page.dataoffsets), len(page.databytecounts)) < needed:
        return None
    return _Level(
        size, tile, tuple(page.dataoffsets), tuple(page.databytecounts), page.jpegtables, _COLOURS[page.photometric]
    )
