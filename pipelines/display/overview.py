"""Zoom levels that a file lacks: made once, kept in memory where they are small and in a bounded cache where not."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from pipelines.bundle import image_fingerprint
from pipelines.display.levels import ZoomLevel, zoom_levels
from pipelines.display.making import CACHE, Making, tell
from pipelines.display.reduce import halve
from tiling import Box, Size, Source, open_image

Pixels = tuple[NDArray[Any], NDArray[np.bool_]]
"""((h, w, bands), (h, w) valid)."""
IN_MEMORY: Final = 96 * 2**20
"""Bytes of a file's level from which coarser ones are made in memory, when the first tile is asked for."""
STRIPE: Final = 2**22
"""Pixels that are read at once."""


class MemoryOverview:
    """The stored levels of a small image."""

    def __init__(self, source: Source, levels: Sequence[ZoomLevel]) -> None:
        self._arrays: dict[int, Pixels] = {}
        for index, level in enumerate(levels):
            if level.stored:
                shape = (level.size.height, level.size.width)
                self._arrays[index] = (np.zeros((*shape, len(source.bands)), source.dtype), np.zeros(shape, bool))
        for index, box, pixels, valid in build(source, levels):
            self._arrays[index][0][box.slices] = pixels
            self._arrays[index][1][box.slices] = valid

    progress = 1.0

    @property
    def bytes(self) -> int:
        return sum(pixels.nbytes + valid.nbytes for pixels, valid in self._arrays.values())

    def read(self, index: int, box: Box) -> Pixels:
        pixels, valid = self._arrays[index]
        return pixels[box.slices], valid[box.slices]


class DiskOverview:
    """The stored levels of a large image, made by a process of their own; a stripe at a time can be seen at once."""

    def __init__(self, source: Source, cache: Path, limit: int = CACHE) -> None:
        folder = cache / hashlib.sha256(image_fingerprint(source.path).encode()).hexdigest()[:32]
        self._making = Making(folder, "pipelines.display.overview", [source.path], limit)
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._lock = threading.Lock()

    @property
    def progress(self) -> float:
        return self._making.progress

    @property
    def failed(self) -> bool:
        """Whether the process that made it has ended early."""
        return self._making.failed

    def read(self, index: int, box: Box) -> Pixels:
        try:
            with self._lock:
                if str(index) not in self._arrays:
                    opened = zarr.open_array(self._making.folder / str(index), mode="r", zarr_format=3)
                    self._arrays[str(index)] = opened
            both = np.asarray(self._arrays[str(index)][box.slices])
        except (OSError, ValueError):  # the process has not laid it out yet
            return np.zeros((box.height, box.width, 1), np.uint8), np.zeros((box.height, box.width), bool)
        return both[..., :-1], both[..., -1] > 0

    def close(self) -> None:
        """Stops the process that makes it."""
        self._making.close()


def build(source: Source, levels: Sequence[ZoomLevel]) -> Iterator[tuple[int, Box, NDArray[Any], NDArray[np.bool_]]]:
    """The stored levels in pieces, each (index, box, pixels, valid): stripes of a file's level from the top down."""
    for native in sorted({level.source for level in levels if level.stored}):
        wanted = [(index, level) for index, level in enumerate(levels) if level.source == native and level.stored]
        size, last = source.levels[native].size, wanted[-1][1].factor
        first = wanted[0][1].factor
        # A stripe is a whole number of the coarsest cells, so that no cell is made from two stripes.
        rows = max(last, STRIPE // size.width // last * last)
        for y in range(0, size.height, rows):
            box = Box.between(y, 0, min(y + rows, size.height), size.width)
            pixels, valid = _reduced(source, native, box, first)
            factor = first
            for index, level in wanted:
                while factor < level.factor:
                    pixels, valid = halve(pixels, valid)
                    factor *= 2
                yield index, Box(y // factor, 0, *valid.shape), pixels, valid


def _reduced(source: Source, native: int, box: Box, factor: int) -> Pixels:
    """A stripe `factor` times smaller, read in pieces so that memory stays small where rows are long."""
    tile = source.levels[native].chunk.height
    step = max(factor, -(-tile // factor) * factor)
    parts = []
    for y in range(box.y, box.bottom, step):
        part = Box.between(y, box.x, min(y + step, box.bottom), box.right)
        parts.append(halve(source.read(part, native), source.valid(part, native), factor))
    return np.concatenate([p for p, _ in parts]), np.concatenate([v for _, v in parts])


def open_overview(source: Source, levels: Sequence[ZoomLevel], cache: Path) -> MemoryOverview | DiskOverview | None:
    """The stored levels of an image; None where it needs none."""
    bases = {level.source for level in levels if level.stored}
    if not bases:
        return None
    sizes = [source.levels[base].size for base in bases]
    each = source.dtype.itemsize * len(source.bands)
    if sum(size.pixels for size in sizes) * each <= IN_MEMORY or not Path(source.path).exists():
        return MemoryOverview(source, levels)
    return DiskOverview(source, cache)


def write(path: str, folder: Path) -> None:
    """Makes the stored levels of an image in `folder`, with a last band that is 0 where there is no data."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source = open_image(path)
    levels = zoom_levels(source)
    arrays = {i: _create(folder / str(i), level.size, source) for i, level in enumerate(levels) if level.stored}
    total = sum(levels[i].size.pixels for i in arrays)
    done = 0
    for index, box, pixels, valid in build(source, levels):
        mark = valid[..., None].astype(source.dtype)
        arrays[index][box.slices] = np.concatenate([pixels, mark], axis=2)
        done += box.pixels
        tell(folder, 0.999 * done / total)
    tell(folder, 1.0)


def _create(path: Path, size: Size, source: Source) -> zarr.Array[Any]:
    bands = len(source.bands) + 1
    return zarr.create_array(
        path,
        shape=(size.height, size.width, bands),
        chunks=(256, 256, bands),
        dtype=source.dtype.name,
        fill_value=0,
        zarr_format=3,
        compressors=ZstdCodec(level=1),
    )


if __name__ == "__main__":
    os.nice(10)
    write(sys.argv[1], Path(sys.argv[2]))
