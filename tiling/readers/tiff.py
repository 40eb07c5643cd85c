"""Slides and other TIFFs without a georeference: Aperio SVS, NDPI, OME-TIFF, Philips, generic pyramids."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tifffile import PHOTOMETRIC, TiffFile, TiffPage

from tiling import storage, validity
from tiling.geometry import Box
from tiling.georef import Georef, Spacing
from tiling.readers import tiff_tags
from tiling.readers.opened import OpenedImage, level_scale, one_line
from tiling.readers.orientation import UPRIGHT
from tiling.readers.segments import LevelPixels
from tiling.readers.tile_cache import LIMIT, TileCache
from tiling.source import Kind, Level

# What tifffile finds odd in a file is an error or a warning of ours, in one line; it would log each tag.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

MAGIC: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class TiffSource(OpenedImage):
    """A TIFF read with tifffile, tile by tile; only the specimen's pyramid, never label, macro or thumbnail.

    Samples are as stored, except that YCbCr (of JPEG, and of Aperio's JPEG 2000) comes as RGB, white-is-zero is
    inverted, palettes come as their colours, and an image that is stored rotated or mirrored comes upright. Where a
    file has more than one focal plane or time, the first is read and `warnings` says so.
    """

    kind: Kind = "slide"

    def __init__(self, path: str | os.PathLike[str], *, indexed: bool = False) -> None:
        super().__init__(path, indexed=indexed)
        self._lock = threading.Lock()
        self._cache = TileCache()
        self._pixels: list[LevelPixels] | None = None
        self._read_bands: list[int] | None = None
        with one_line(f"{self.path}: cannot be read"):
            tif = self._open()
            try:
                self._describe(tif)
            except BaseException:
                self.close()
                raise

    @classmethod
    def accepts(cls, path: str) -> bool:
        return tiff_magic(path)

    def close(self) -> None:
        """Closes the file. Reading again re-opens it."""
        with self._lock:
            self._pixels = None
            self._cache.clear()
            self._closer()

    def blank(self, box: Box, level: int = 0) -> bool:
        """Whether the file leaves out every tile that `box` touches."""
        return self._level(level).missing(self._stored(box, level))

    @property
    def working_bytes(self) -> int:
        pixels = self._level(0)
        whole = sum(level.size.pixels for level in self.levels) * pixels.bands * self.dtype.itemsize
        return min(whole, LIMIT) + 2 * pixels.segment_bytes

    def _open(self) -> TiffFile:
        remote = storage.is_url(self.path)
        tif = TiffFile(storage.open_file(storage.open_bytes(self.path)) if remote else self.path)
        tif.filehandle.set_lock(True)
        self._file = storage.open_bytes(self.path)
        self._closer = weakref.finalize(self, _close, tif, self._file)
        return tif

    def _levels_of(self, tif: TiffFile) -> list[LevelPixels]:
        levels = tiff_tags.pyramid(tiff_tags.baseline(tif))
        return [LevelPixels(level, self._file, self._cache) for level in levels]

    def _describe(self, tif: TiffFile) -> None:
        series = tiff_tags.baseline(tif)
        page = series.keyframe
        tiff_tags.refuse_unusable(page)
        pixels = self._levels_of(tif)
        for level in pixels:
            level.check_complete(self._file.length)
        full, self._alpha = pixels[0], tiff_tags.alpha_sample(page)
        inverted = page.photometric == PHOTOMETRIC.MINISWHITE and not self._indexed
        self._white = 2**page.bitspersample - 1 if inverted else None
        self._ycbcr = tiff_tags.is_aperio_ycbcr(page)
        self._palette = None if self._indexed else tiff_tags.palette(page)
        self._turn = tiff_tags.orientation(page)
        self.dtype = np.dtype(np.uint8 if self._palette is not None else series.dtype).newbyteorder("=")
        count = 3 if self._palette is not None else full.bands - (self._alpha is not None)
        self._samples = [i for i in range(full.bands) if i != self._alpha]
        self.bands = tiff_tags.band_names(tif, series, count)
        size, turned = self._turn.size(full.size), self._turn.size
        self.levels = tuple(Level(turned(p.size), turned(p.segment), level_scale(size, turned(p.size))) for p in pixels)
        spacing, doubt = tiff_tags.spacing(tif, series)
        if spacing is not None and self._turn.swaps:
            spacing = Spacing(spacing.x, spacing.y, spacing.unit)
        self.georef = Georef.pixels() if spacing is None else Georef.micrometres(spacing)
        if spacing is not None:
            top, left = tiff_tags.offset(tif, series)
            self.georef = self.georef.shifted(top / spacing.y, left / spacing.x)
        left_out = tiff_tags.images_left_out(tif)
        self._notes = tuple(f"{self.name}: {note}" for note in self._remarks(page, full, doubt, left_out))
        self.provenance = {
            "format": tiff_tags.format_name(tif),
            "compression": tiff_tags.label(page.compression),
            "tile": str(full.segment),
            "colours": tiff_tags.label(page.photometric),
        }
        self._pixels = pixels

    def _remarks(self, page: TiffPage, full: LevelPixels, doubt: str | None, left_out: int) -> Iterator[str]:
        if doubt:
            yield doubt
        if left_out:
            yield f"holds {left_out + 1} images: only the largest is read"
        top, left = (round(-c) for c in reversed(~self.georef.transform @ (0.0, 0.0)))
        if top or left:
            yield f"was scanned in part: places count from the slide's origin, {top} px above and {left} px left of it"
        if self._turn.value != UPRIGHT:
            yield f"is stored rotated or mirrored (TIFF orientation {self._turn.value}): it is read upright"
        if self._palette is not None:
            yield "has palette colours: they are read as red, green and blue"
        for axis, n in full.left_out.items():
            yield f"has {n} positions on axis {axis}: only the first is read"
        if self._palette is None and page.bitspersample not in (8, 16, 32, 64):
            yield f"has {page.bitspersample}-bit samples: values run from 0 to {2**page.bitspersample - 1}"

    def _level(self, level: int) -> LevelPixels:
        with self._lock:
            if self._pixels is None:
                self._pixels = self._levels_of(self._open())
            return self._pixels[level]

    def _keep(self, places: list[int]) -> None:
        if self._palette is not None or self._ycbcr:
            self._kept = places
        else:
            self._samples = [self._samples[place] for place in places]

    def _stored(self, box: Box, level: int) -> Box:
        return self._turn.stored(box, self._level(level).size)

    def _read(self, box: Box, level: int) -> NDArray[Any]:
        pixels = self._level(level).read(self._stored(box, level), self._samples)
        if self._palette is not None:
            pixels = self._palette[pixels[..., 0]]
        if self._ycbcr:
            pixels = np.array(Image.fromarray(pixels, "YCbCr").convert("RGB"))
        if self._white is not None:
            pixels = (self._white - pixels).astype(self.dtype)
        return self._turn.upright(pixels)

    def _valid(self, box: Box, level: int) -> NDArray[np.bool_]:
        stored = self._stored(box, level)
        valid = self._level(level).present(stored)
        if self.dtype.kind == "f":
            valid = validity.combine(valid, validity.finite(self._level(level).read(stored, self._samples)))
        if self._alpha is not None:
            alpha = self._level(level).read(stored, [self._alpha])
            valid = validity.combine(valid, validity.opaque(alpha[..., 0]))
        return self._turn.upright(valid)


def _close(tif: TiffFile, file: storage.LocalBytes | storage.RemoteBytes) -> None:
    tif.close()
    file.close()


def tiff_magic(path: str) -> bool:
    """Whether the file starts like a TIFF or BigTIFF."""
    return storage.start(path, 4) in MAGIC
