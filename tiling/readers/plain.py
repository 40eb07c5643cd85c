"""Pixels of a plain GeoTIFF on a disk without GDAL between: lossless tiles, decoded as those of slides are."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile

from tiling import storage
from tiling.errors import ImageError
from tiling.geometry import Box, Size
from tiling.readers.segments import LevelPixels
from tiling.readers.tile_cache import TileCache

_CODECS: Final = {
    *(COMPRESSION.NONE, COMPRESSION.LZW, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE, COMPRESSION.ZSTD),
    *(COMPRESSION.LZMA, COMPRESSION.PACKBITS),
}
"""What every decoder makes the same of. JPEG's colours depend on the decoder, and a map's are GDAL's."""
_TILE: Final = 2**25
"""Bytes of a decoded tile, at most; of one huge strip GDAL decodes no more rows than are asked for."""
_COLOURS: Final = {PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB}


class PlainTiff:
    """Level 0 of a GeoTIFF: the numbers that GDAL reads, faster. Opens its file when it is first read."""

    def __init__(self, path: str, cache: int) -> None:
        self.path = path
        self._cache = TileCache(cache)
        self._lock = threading.Lock()
        self._pixels: LevelPixels | None = None

    @classmethod
    def of(cls, path: str, size: Size, bands: int, dtype: np.dtype[Any], cache: int) -> PlainTiff | None:
        """None for a file elsewhere, in another encoding, or in which tifffile finds another image than GDAL did."""
        plain = cls(path, cache)
        with suppress(Exception):
            if not storage.is_url(path):
                pixels = plain._opened()
                found = pixels.size, pixels.bands, pixels.dtype, pixels.left_out
                if found == (size, bands, dtype, {}) and pixels.segment_bytes <= _TILE:
                    return plain
        plain.close()
        return None

    def read(self, box: Box, bands: Sequence[int]) -> NDArray[Any] | None:
        """(H, W, bands) of these bands, counted from 0; None where the file leaves a tile out."""
        pixels = self._opened()
        return pixels.read(box, bands) if pixels.present(box).all() else None

    def close(self) -> None:
        """Closes the file. Reading again re-opens it."""
        with self._lock:
            if self._pixels is not None:
                self._pixels = None
                self._cache.clear()
                self._closer()

    def _opened(self) -> LevelPixels:
        with self._lock:
            if self._pixels is None:
                self._pixels = self._open()
            return self._pixels

    def _open(self) -> LevelPixels:
        tif, file = TiffFile(self.path), storage.open_bytes(self.path)
        tif.filehandle.set_lock(True)
        self._closer = weakref.finalize(self, _close, tif, file)
        series, page = tif.series[0], tif.pages.first
        plain = page.compression in _CODECS and page.photometric in _COLOURS and page.bitspersample in (8, 16, 32, 64)
        if not plain or series.keyframe is not page or len(series.pages) != 1 or page.fillorder != 1:
            self._closer()
            raise ImageError("it is not plain")
        return LevelPixels(series, file, self._cache)


def _close(tif: TiffFile, file: storage.LocalBytes | storage.RemoteBytes) -> None:
    tif.close()
    file.close()
