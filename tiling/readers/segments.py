"""The pixels of one level of a TIFF: decodes the tiles or strips that a box touches, and nothing else."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffPage, TiffPageSeries

from tiling.errors import ImageError
from tiling.geometry import Box, Size


class LevelPixels:
    """One level, laid out (H, W, samples) or as one page per channel. Safe to read from several threads.

    Decodes in the calling thread with tifffile's `TiffPage.decode`, so threads add up; tifffile's own Zarr store gives
    the same pixels, but all of its callers share one event loop.
    """

    def __init__(self, series: TiffPageSeries) -> None:
        self._series = series
        self._page: TiffPage = series.keyframe
        page = self._page
        frame_axes = _frame_axes(series)
        self.size = Size(page.imagelength, page.imagewidth)
        self.segment = (
            Size(page.tilelength, page.tilewidth)
            if page.is_tiled
            else Size(min(page.rowsperstrip, page.imagelength), page.imagewidth)
        )
        self.samples: int = page.samplesperpixel
        self.channels = 1
        """Pages that make the bands: the C axis, where samples are not interleaved in the pages."""
        frame_shape = series.shape[: len(frame_axes)]
        if self.samples == 1 and "C" in frame_axes:
            self.channels = frame_shape[frame_axes.index("C")]
        first = [0] * len(frame_axes)
        self._frames = [
            int(np.ravel_multi_index([c if axis == "C" else 0 for axis in frame_axes], frame_shape)) if first else 0
            for c in range(self.channels)
        ]
        used = "C" if self.channels > 1 else ""
        sizes = dict(zip(series.axes, series.shape, strict=True))
        self.left_out = {a: n for a, n in sizes.items() if n > 1 and a not in "YX" + used + "S"}
        """Axes of which only the first position is read, and how many positions they have."""

    @property
    def bands(self) -> int:
        return self.samples * self.channels

    def read(self, box: Box) -> NDArray[Any]:
        """(H, W, bands) as tifffile decodes it; a tile that the file leaves out is zero."""
        out = np.zeros((box.height, box.width, self.bands), self._series.dtype)
        separate = self._page.planarconfig == 2 and self.samples > 1
        for k, frame in enumerate(self._frames):
            for plane in range(self.samples if separate else 1):
                into = out[..., plane : plane + 1] if separate else out[..., k * self.samples : (k + 1) * self.samples]
                self._read_plane(into, box, frame, plane)
        return out

    def present(self, box: Box) -> NDArray[np.bool_]:
        """(H, W): False where the file leaves the tile out."""
        if self._tiles_present.all():
            return np.ones((box.height, box.width), dtype=np.bool_)
        rows = np.arange(box.y, box.bottom) // self.segment.height
        columns = np.arange(box.x, box.right) // self.segment.width
        return np.asarray(self._tiles_present[rows[:, None], columns[None, :]])

    def missing(self, box: Box) -> bool:
        """Whether the file leaves out every tile that `box` touches."""
        tile = self.segment
        rows = slice(box.y // tile.height, math.ceil(box.bottom / tile.height))
        columns = slice(box.x // tile.width, math.ceil(box.right / tile.width))
        return not self._tiles_present[rows, columns].any()

    def check_complete(self) -> None:
        """Raises ImageError where tiles are missing or lie beyond the file's end: a copy that broke off."""
        page, length = self._page, self._page.parent.filehandle.size
        (down, across), listed = self._grid, min(len(page.dataoffsets), len(page.databytecounts))
        # Philips leaves out the last row of tiles where it is empty.
        if listed < (down - 1) * across or listed == 0:
            raise ImageError(f"the file is damaged: it lists {listed} tiles or strips, its size needs {down * across}")
        end = max((o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
        if end > length:
            raise ImageError(f"the file is cut off: its pixels reach to byte {end}, it has {length}; copy it again")

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

    def _read_plane(self, into: NDArray[Any], box: Box, frame: int, plane: int) -> None:
        down, across = self._grid
        tile = self.segment
        plane_start = plane * down * across * math.ceil(self._page.imagedepth / max(self._page.tiledepth, 1))
        for row in range(box.y // tile.height, math.ceil(box.bottom / tile.height)):
            for column in range(box.x // tile.width, math.ceil(box.right / tile.width)):
                pixels = self._decode(frame, plane_start + row * across + column)
                if pixels is None:
                    continue
                height, width = pixels.shape[:2]
                covers = Box(row * tile.height, column * tile.width, height, width)
                common = covers.intersect(box)
                if common is not None:
                    into[common.relative_to(box).slices] = pixels[common.relative_to(covers).slices]

    def _decode(self, frame: int, index: int) -> NDArray[Any] | None:
        """Tile `index` of page `frame` as (H, W, samples), or None where the file leaves it out."""
        series, keyframe = self._series, self._page
        file = keyframe.parent.filehandle
        contiguous = series.dataoffset is not None
        with file.lock:
            page = series[0 if contiguous else frame]
            if page is None or index >= min(len(page.dataoffsets), len(page.databytecounts)):
                return None
            offset, count = page.dataoffsets[index], page.databytecounts[index]
            if contiguous:
                offset += frame * keyframe.size * self._series.dtype.itemsize
            if offset == 0 or count == 0:
                return None
            file.seek(offset)
            data = file.read(count)
        if len(data) < count:
            raise ImageError(f"the file is cut off: a tile needs {count} bytes at {offset}, {len(data)} are left")
        options = {"jpegtables": page.jpegtables} if page.jpegtables is not None else {}
        if keyframe.jpegheader is not None:
            options["jpegheader"] = keyframe.jpegheader
        decoded = keyframe.decode(data, index, **options)[0]
        return None if decoded is None else np.asarray(decoded[0])


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
