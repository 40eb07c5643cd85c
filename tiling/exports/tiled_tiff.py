"""Labels and their pyramid as a tiled TIFF, streamed: what the OME-TIFF and the GeoTIFF are made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import tifffile
from numpy.typing import NDArray

from tiling.geometry import Box, Size
from tiling.labels import NODATA, Labels

TILE: Final = 512
"""Side of a tile in pixels."""
_SPAN: Final = 16 * TILE
"""Columns that are read at once."""
_BIG: Final = 2**31
"""Pixels from which a file is a BigTIFF. Compression can make labels larger than this only by a few bytes a tile."""


def write_pyramid(path: Path, labels: Labels, *, nested: bool, level: int = 6, **first: Any) -> None:
    """Writes all levels, uint8, deflated with effort `level` (1..12).

    The coarser levels are nested in the first page (SubIFDs, as OME-TIFF wants) or follow it as pages (overviews, as
    GDAL wants). `first` goes to the first page, as for tifffile's `write`. Memory holds a few rows of tiles.
    """
    sizes = [Size(*array.shape) for array in labels.levels]
    shared = {
        "dtype": np.uint8,
        "tile": (TILE, TILE),
        "compression": "zlib",
        "compressionargs": {"level": level},
        "photometric": "minisblack",
        "metadata": None,
        "software": False,
        "buffersize": 64 * TILE * TILE,
    }
    big = sum(size.pixels for size in sizes) >= _BIG
    with tifffile.TiffWriter(path, bigtiff=big, ome=False, byteorder="<") as tiff:
        for index, size in enumerate(sizes):
            place = first | {"subifds": len(sizes) - 1 if nested else 0} if index == 0 else {"subfiletype": 1}
            tiff.write(_tiles(labels, index), shape=(size.height, size.width), **(shared | place))


def _tiles(labels: Labels, level: int) -> Iterator[NDArray[np.uint8]]:
    """Whole tiles of one level, row by row, no data beyond the edges."""
    height, width = labels.levels[level].shape
    for y in range(0, height, TILE):
        for left in range(0, width, _SPAN):
            part = labels.read(Box.between(y, left, min(y + TILE, height), min(left + _SPAN, width)), level)
            for x in range(0, part.shape[1], TILE):
                tile = np.full((TILE, TILE), NODATA, np.uint8)
                inside = part[:, x : x + TILE]
                tile[: inside.shape[0], : inside.shape[1]] = inside
                yield tile
