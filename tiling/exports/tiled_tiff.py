"""Labels, or what lies beside them, with their pyramid as a tiled TIFF, streamed: what both masks are made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, cast

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
"""Bytes from which a file is a BigTIFF. Compression can make it larger than this only by a few bytes a tile."""
Read = Callable[[Box, int], NDArray[np.uint8]]
"""(box, level) -> (h, w)."""


def channel_readers(labels: Labels, layer: str | None) -> list[Read]:
    """What reads each channel of a layer; the labels themselves for None."""
    if layer is None:
        return [labels.read]

    levels = labels.layers[layer].levels

    def reader(channel: int) -> Read:
        return lambda box, level: cast("NDArray[np.uint8]", levels[level][(channel, *box.slices)])

    return [reader(channel) for channel in range(len(labels.layers[layer].channels))]


def write_pyramid(
    path: Path, labels: Labels, *, nested: bool, level: int = 6, layer: str | None = None, **first: Any
) -> None:
    """Writes all levels, uint8, deflated with effort `level` (1..12).

    The coarser levels are nested in the first page (SubIFDs, as OME-TIFF wants) or follow it as pages (overviews, as
    GDAL wants). The channels of a layer are a page each, or bands of one page. `first` goes to the first page, as for
    tifffile's `write`. Memory holds a few rows of tiles.
    """
    sizes = [Size(*array.shape) for array in labels.levels]
    channels = channel_readers(labels, layer)
    shared = {
        "dtype": np.uint8,
        "tile": (TILE, TILE),
        "compression": "zlib",
        "compressionargs": {"level": level},
        "photometric": "minisblack",
        "planarconfig": None if nested or len(channels) == 1 else "separate",
        "metadata": None,
        "software": False,
        "buffersize": 64 * TILE * TILE,
    }
    big = len(channels) * sum(size.pixels for size in sizes) >= _BIG
    with tifffile.TiffWriter(path, bigtiff=big, ome=False, byteorder="<") as tiff:
        for index, size in enumerate(sizes):
            place = first | {"subifds": len(sizes) - 1 if nested else 0} if index == 0 else {"subfiletype": 1}
            shape = (size.height, size.width) if len(channels) == 1 else (len(channels), size.height, size.width)
            tiles = (tile for read in channels for tile in _tiles(read, size, index))
            tiff.write(tiles, shape=shape, **(shared | place))


def _tiles(read: Read, size: Size, level: int) -> Iterator[NDArray[np.uint8]]:
    """Whole tiles of one level, row by row, no data beyond the edges."""
    for y in range(0, size.height, TILE):
        for left in range(0, size.width, _SPAN):
            part = read(Box.between(y, left, min(y + TILE, size.height), min(left + _SPAN, size.width)), level)
            for x in range(0, part.shape[1], TILE):
                tile = np.full((TILE, TILE), NODATA, np.uint8)
                inside = part[:, x : x + TILE]
                tile[: inside.shape[0], : inside.shape[1]] = inside
                yield tile
