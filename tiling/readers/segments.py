"""The pixels of one level of a TIFF: decodes the tiles or strips that a box touches, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffPage, TiffPageSeries

from tiling.errors import ImageError
from tiling.geometry import Box, Size
from tiling.readers.tile_cache import TileCache
from tiling.storage import Bytes

PLAIN_STRIP: Final = 2**20
"""Bytes that are read at once of an image that is stored uncompressed and in one piece."""


LARGE_TILE: Final = 2**24
"""Pixels of a tile that may be larger than its image."""


@dataclass(frozen=True, slots=True)
class _Plane:
    """Bands that are decoded together."""

    frame: int
    """Page of the series."""
    plane: int
    """Which of the page's separate planes."""
    first: int
    """Its first band."""
    count: int
    """How many bands it holds, interleaved."""


class LevelPixels:
    """One level as it is stored, (H, W, samples) or one page or plane per channel. Several threads may read it at once.

    Decodes in the calling thread with tifffile's `TiffPage.decode`, so threads add up; tifffile's own Zarr store gives
    the same pixels, but all of its callers share one event loop.
    """

    def __init__(self, series: TiffPageSeries, file: Bytes, cache: TileCache) -> None:
        self._series, self._file, self._cache = series, file, cache
        self._page: TiffPage = series.keyframe
        page = self._page
        frame_axes = _frame_axes(series)
        self.size = Size(page.imagelength, page.imagewidth)
        self.dtype = np.dtype(series.dtype).newbyteorder("=")
        self.samples: int = page.samplesperpixel
        self._plain_rows = _plain_rows(page)
        self.segment = self._segment()
        frame_shape = series.shape[: len(frame_axes)]
        channels = 1
        if self.samples == 1 and "C" in frame_axes:
            channels = frame_shape[frame_axes.index("C")]
        frames = [
            int(np.ravel_multi_index([c if a == "C" else 0 for a in frame_axes], frame_shape)) if frame_axes else 0
            for c in range(channels)
        ]
        separate = page.planarconfig == 2 and self.samples > 1
        planes, count = (self.samples, 1) if separate else (1, self.samples)
        self._planes = [
            _Plane(frame, plane, (k * planes + plane) * count, count)
            for k, frame in enumerate(frames)
            for plane in range(planes)
        ]
        self.bands = channels * self.samples
        used = "C" if channels > 1 else ""
        sizes = dict(zip(series.axes, series.shape, strict=True))
        self.left_out = {a: n for a, n in sizes.items() if n > 1 and a not in "YX" + used + "S"}
        """Axes of which only the first position is read, and how many positions they have."""

    @property
    def segment_bytes(self) -> int:
        """Bytes of one decoded tile or strip."""
        return self.segment.pixels * self._planes[0].count * int(self._series.dtype.itemsize)

    def read(self, box: Box, bands: Sequence[int] | None = None) -> NDArray[Any]:
        """(H, W, bands) as tifffile decodes it, of these bands or all; a tile that the file leaves out is zero."""
        wanted = list(range(self.bands)) if bands is None else list(bands)
        out = np.zeros((box.height, box.width, len(wanted)), self._series.dtype.newbyteorder("="))
        for plane in self._planes:
            places = [i for i, band in enumerate(wanted) if plane.first <= band < plane.first + plane.count]
            samples = [wanted[i] - plane.first for i in places]
            if places and samples == list(range(plane.count)) and places == list(range(places[0], places[-1] + 1)):
                self._read_plane(out[..., places[0] : places[-1] + 1], box, plane)
            elif places:
                part = np.zeros((box.height, box.width, plane.count), out.dtype)
                self._read_plane(part, box, plane)
                out[..., places] = part[..., samples]
        return out

    def present(self, box: Box) -> NDArray[np.bool_]:
        """(H, W): False where the file leaves the tile out."""
        if self._plain_rows or self._tiles_present.all():
            return np.ones((box.height, box.width), dtype=np.bool_)
        rows = np.arange(box.y, box.bottom) // self.segment.height
        columns = np.arange(box.x, box.right) // self.segment.width
        return np.asarray(self._tiles_present[rows[:, None], columns[None, :]])

    def missing(self, box: Box) -> bool:
        """Whether the file leaves out every tile that `box` touches."""
        if self._plain_rows:
            return False
        tile = self.segment
        rows = slice(box.y // tile.height, math.ceil(box.bottom / tile.height))
        columns = slice(box.x // tile.width, math.ceil(box.right / tile.width))
        return not self._tiles_present[rows, columns].any()

    def check_complete(self, length: int) -> None:
        """Raises ImageError where tiles are missing or lie beyond the file's `length`: a copy that broke off.

        And where one tile claims far more memory than the image has pixels, which is damage or malice.
        """
        page = self._page
        if self.segment.pixels > max(4 * self.size.pixels, LARGE_TILE):
            raise ImageError(f"the file is damaged: it is {self.size}, in tiles of {self.segment}")
        height = self.segment.height if page.is_tiled else min(page.rowsperstrip, page.imagelength)
        down, across = math.ceil(self.size.height / height), math.ceil(self.size.width / self.segment.width)
        listed = min(len(page.dataoffsets), len(page.databytecounts))
        # Philips leaves out the last row of tiles where it is empty.
        if listed < (down - 1) * across or listed == 0:
            raise ImageError(f"the file is damaged: it lists {listed} tiles or strips, its size needs {down * across}")
        end = max((o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
        if end > length:
            raise ImageError(f"the file is cut off: its pixels reach to byte {end}, it has {length}; copy it again")

    def _segment(self) -> Size:
        page = self._page
        if self._plain_rows:
            return Size(self._plain_rows, page.imagewidth)
        if page.is_tiled:
            return Size(page.tilelength, page.tilewidth)
        return Size(min(page.rowsperstrip, page.imagelength), page.imagewidth)

    @cached_property
    def _grid(self) -> tuple[int, int]:
        """Tiles (down, across)."""
        return math.ceil(self.size.height / self.segment.height), math.ceil(self.size.width / self.segment.width)

    @cached_property
    def _tiles_present(self) -> NDArray[np.bool_]:
        down, across = self._grid
        offsets, counts = self._page.dataoffsets, self._page.databytecounts
        n = min(len(offsets), len(counts), down * across)
        known = np.zeros(down * across, dtype=np.bool_)
        known[:n] = (np.asarray(offsets[:n]) > 0) & (np.asarray(counts[:n]) > 0)
        return known.reshape(down, across)

    def _read_plane(self, into: NDArray[Any], box: Box, plane: _Plane) -> None:
        down, across = self._grid
        tile, depth = self.segment, math.ceil(self._page.imagedepth / max(self._page.tiledepth, 1))
        start = plane.plane * down * across * depth
        for row in range(box.y // tile.height, math.ceil(box.bottom / tile.height)):
            for column in range(box.x // tile.width, math.ceil(box.right / tile.width)):
                pixels = self._tile(plane.frame, start + row * across + column)
                if pixels is None:
                    continue
                height, width = pixels.shape[:2]
                covers = Box(row * tile.height, column * tile.width, height, width)
                common = covers.intersect(box)
                if common is not None:
                    into[common.relative_to(box).slices] = pixels[common.relative_to(covers).slices]

    def _tile(self, frame: int, index: int) -> NDArray[Any] | None:
        decode = self._plain if self._plain_rows else self._decode
        return self._cache.get((id(self), frame, index), lambda: decode(frame, index))

    def _decode(self, frame: int, index: int) -> NDArray[Any] | None:
        """Tile `index` of page `frame` as (H, W, samples), or None where the file leaves it out."""
        page = self._page
        data = self._encoded(frame, index)
        if data is None:
            return None
        options = {"jpegtables": page.jpegtables} if page.jpegtables is not None else {}
        if page.jpegheader is not None:
            options["jpegheader"] = page.jpegheader
        decoded = page.decode(data, index, **options)[0]
        return None if decoded is None else np.asarray(decoded[0])

    def _encoded(self, frame: int, index: int) -> bytes | None:
        series, keyframe = self._series, self._page
        contiguous = series.dataoffset is not None
        with keyframe.parent.filehandle.lock:
            page = series[0 if contiguous else frame]
            if page is None or index >= min(len(page.dataoffsets), len(page.databytecounts)):
                return None
            offset, count = page.dataoffsets[index], page.databytecounts[index]
        if contiguous:
            offset += frame * keyframe.size * self._series.dtype.itemsize
        return None if offset == 0 or count == 0 else self._bytes(offset, count)

    def _plain(self, frame: int, index: int) -> NDArray[Any] | None:
        """Some rows of an image that is stored uncompressed in one piece."""
        series, keyframe = self._series, self._page
        contiguous = series.dataoffset is not None
        with keyframe.parent.filehandle.lock:
            page = series[0 if contiguous else frame]
            if page is None:
                return None
            offset = page.dataoffsets[0]
        itemsize = series.dtype.itemsize
        row = self.size.width * self.samples * itemsize
        first = index * self._plain_rows
        rows = min(self._plain_rows, self.size.height - first)
        offset += first * row + (frame * keyframe.size * itemsize if contiguous else 0)
        dtype = np.dtype(series.dtype).newbyteorder(keyframe.parent.byteorder)
        return np.frombuffer(self._bytes(offset, rows * row), dtype).reshape(rows, self.size.width, self.samples)

    def _bytes(self, offset: int, count: int) -> bytes:
        data = self._file.read_at(offset, count)
        if len(data) < count:
            raise ImageError(f"the file is cut off: a tile needs {count} bytes at {offset}, {len(data)} are left")
        return data


def _plain_rows(page: TiffPage) -> int:
    """Rows to read at once of a page without compression whose strips are larger than that; 0 for any other."""
    separate = page.planarconfig == 2 and page.samplesperpixel > 1
    if page.is_tiled or separate or not page.is_contiguous or page.dtype is None or page.dataoffsets[0] == 0:
        return 0
    row = page.imagewidth * page.samplesperpixel * page.dtype.itemsize
    return max(1, PLAIN_STRIP // row) if row * min(page.rowsperstrip, page.imagelength) > PLAIN_STRIP else 0


def _frame_axes(series: TiffPageSeries) -> str:
    """The axes that run over pages; raises ImageError where rows and columns are not a page's own."""
    page = series.keyframe
    inner = next((n for n in range(len(series.shape) + 1) if math.prod(series.shape[n:]) == page.size), -1)
    page_axes = dict(zip(series.axes[inner:], series.shape[inner:], strict=True)) if inner >= 0 else {}
    if page_axes.get("Y") != page.imagelength or page_axes.get("X") != page.imagewidth:
        raise ImageError(
            f"its axes are {series.axes} {series.shape} in pages of {page.imagelength} x {page.imagewidth} px; "
            "an image needs its rows and columns in one page"
        )
    return str(series.axes[:inner])
