"""Slides and other TIFFs without a georeference: Aperio SVS, NDPI, OME-TIFF, Philips, generic pyramids."""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tifffile import PHOTOMETRIC, TiffFile

from tiling import validity
from tiling.geometry import Box
from tiling.georef import Georef
from tiling.readers import tiff_tags
from tiling.readers.opened import OpenedImage, level_scale, one_line
from tiling.readers.segments import LevelPixels
from tiling.source import Kind, Level

MAGIC: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class TiffSource(OpenedImage):
    """A TIFF read with tifffile, tile by tile; only the specimen's pyramid, never label, macro or thumbnail.

    Samples are as stored, except that YCbCr (of JPEG, and of Aperio's JPEG 2000) comes as RGB, and white-is-zero is
    inverted. Where a file has more than one focal plane or time, the first is read and `warnings` says so.
    """

    kind: Kind = "slide"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._lock = threading.Lock()
        self._pixels: list[LevelPixels] | None = None
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
            self._closer()

    def blank(self, box: Box, level: int = 0) -> bool:
        """Whether the file leaves out every tile that `box` touches."""
        return self._level(level).missing(box)

    def _open(self) -> TiffFile:
        tif = TiffFile(self.path)
        tif.filehandle.set_lock(True)
        self._closer = weakref.finalize(self, tif.close)
        return tif

    def _describe(self, tif: TiffFile) -> None:
        series = tiff_tags.baseline(tif)
        page = series.keyframe
        tiff_tags.refuse_unusable(page)
        pixels = [LevelPixels(level) for level in tiff_tags.pyramid(series)]
        for level in pixels:
            level.check_complete()
        full, self._alpha = pixels[0], tiff_tags.alpha_sample(page)
        self._white = 2**page.bitspersample - 1 if page.photometric == PHOTOMETRIC.MINISWHITE else None
        self._ycbcr = tiff_tags.is_aperio_ycbcr(page)
        self.dtype = np.dtype(series.dtype).newbyteorder("=")
        self.bands = tiff_tags.band_names(tif, series, full.bands - (self._alpha is not None))
        self.levels = tuple(Level(p.size, p.segment, level_scale(full.size, p.size)) for p in pixels)
        spacing, doubt = tiff_tags.spacing(tif, series)
        self.georef = Georef.pixels() if spacing is None else Georef.micrometres(spacing)
        notes = [doubt] if doubt else []
        notes += [f"has {n} positions on axis {axis}: only the first is read" for axis, n in full.left_out.items()]
        if page.bitspersample not in (8, 16, 32, 64):
            notes.append(f"has {page.bitspersample}-bit samples: values run from 0 to {2**page.bitspersample - 1}")
        self.warnings = tuple(f"{self.name}: {note}" for note in notes)
        self.provenance = {
            "format": tiff_tags.format_name(tif),
            "compression": tiff_tags.label(page.compression),
            "tile": str(full.segment),
            "colours": tiff_tags.label(page.photometric),
        }
        self._pixels = pixels

    def _level(self, level: int) -> LevelPixels:
        with self._lock:
            if self._pixels is None:
                series = tiff_tags.baseline(self._open())
                self._pixels = [LevelPixels(s) for s in tiff_tags.pyramid(series)]
            return self._pixels[level]

    def _read(self, box: Box, level: int) -> NDArray[Any]:
        pixels = self._level(level).read(box)
        if self._alpha is not None:
            pixels = np.ascontiguousarray(np.delete(pixels, self._alpha, axis=-1))
        if self._ycbcr:
            pixels = np.array(Image.fromarray(pixels, "YCbCr").convert("RGB"))
        return pixels if self._white is None else (self._white - pixels).astype(self.dtype)

    def _valid(self, box: Box, level: int) -> NDArray[np.bool_]:
        present = self._level(level).present(box)
        if self._alpha is None and self.dtype.kind != "f":
            return present
        pixels = self._level(level).read(box)
        alpha = None if self._alpha is None else validity.opaque(pixels[..., self._alpha])
        return validity.combine(present, validity.finite(pixels), alpha)


def tiff_magic(path: str) -> bool:
    """Whether the file starts like a TIFF or BigTIFF."""
    with suppress(OSError), Path(path).open("rb") as file:
        return file.read(4) in MAGIC
    return False
