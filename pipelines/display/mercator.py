"""A raster and its masks on the Web Mercator grid of map services, warped tile by tile by rio-tiler."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import imagecodecs
import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.warp import calculate_default_transform, transform_bounds

from pipelines.display.levels import ZoomLevel
from pipelines.display.look import Look
from pipelines.display.masks import Count, Place, count, tile_box
from pipelines.display.tiles import ImageTiles, Tile
from pipelines.errors import RequestError
from tiling import NODATA, Box, Georef, LabelClass, Size
from tiling.readers.array import ArraySource

TILE: Final = 256
EDGE: Final = 20037508.342789244
"""Metres of EPSG:3857 from the middle of the world to its edge."""
AROUND: Final = 4
"""The map shows this many times the raster's width and height."""
FINEST: Final = 24


@dataclass(frozen=True, slots=True)
class BaseMap:
    """What lies below: tiles of a map service, which browsers fetch from it."""

    url: str
    """With {z}, {x} and {y}."""
    credit: str = ""
    """Who made it: shown on the map."""

    def __post_init__(self) -> None:
        if not re.match(r"https?://", self.url) or not all(part in self.url for part in ("{z}", "{x}", "{y}")):
            raise RequestError(
                f"{self.url} is no map service; expected an address like https://HOST/{{z}}/{{x}}/{{y}}.png"
            )
        if find_spec("rio_tiler") is None:
            raise RequestError("a base map needs rio-tiler: pip install 'veca[map]'")


@dataclass(frozen=True, slots=True)
class Grid:
    """The tiles of a map around a raster: the same window of the world at each zoom, edges on edges of tiles."""

    zoom: int
    """Of the finest level."""
    x: int
    """Column of the finest level's first tile, counted from the world's west."""
    y: int
    """Row of its first tile, counted from the north."""
    size: Size
    """Of the finest level, in pixels."""
    depth: int
    """How many levels there are; the coarsest one is a few tiles."""

    @classmethod
    def around(cls, bounds: tuple[float, float, float, float], zoom: int) -> Grid:
        """For a raster of these bounds (west, south, east, north) in EPSG:3857, whose own pixels `zoom` shows."""
        west, south, east, north = bounds
        middle, reach = ((west + east) / 2, (south + north) / 2), AROUND / 2 * max(east - west, north - south)
        zoom = min(zoom, FINEST)
        coarse = zoom
        while coarse > 0 and 2 * reach / _side(coarse) > 2:
            coarse -= 1
        side, most = _side(coarse), 2**coarse
        first = max(0, int((middle[0] - reach + EDGE) // side)), max(0, int((EDGE - middle[1] - reach) // side))
        last = (
            min(most - 1, int((middle[0] + reach + EDGE) // side)),
            min(most - 1, int((EDGE - middle[1] + reach) // side)),
        )
        fine = 2 ** (zoom - coarse)
        size = Size((last[1] - first[1] + 1) * fine * TILE, (last[0] - first[0] + 1) * fine * TILE)
        return cls(zoom, first[0] * fine, first[1] * fine, size, zoom - coarse + 1)

    @property
    def georef(self) -> Georef:
        """Of the finest level."""
        pixel = _side(self.zoom) / TILE
        corner = self.x * _side(self.zoom) - EDGE, EDGE - self.y * _side(self.zoom)
        return Georef(Affine(pixel, 0, corner[0], 0, -pixel, corner[1]), "crs", "EPSG:3857")

    @property
    def levels(self) -> tuple[ZoomLevel, ...]:
        """Finest first."""
        steps = [2**i for i in range(self.depth)]
        sizes = [Size(self.size.height // step, self.size.width // step) for step in steps]
        tile = Size(TILE, TILE)
        return tuple(ZoomLevel(size, tile, 0, step, (step, step)) for size, step in zip(sizes, steps, strict=True))

    def bounds(self, box: Box, level: int) -> tuple[float, float, float, float]:
        """(west, south, east, north) in EPSG:3857 of pixels of a level."""
        to_world, step = self.georef.transform, 2**level
        west, north = to_world @ (box.x * step, box.y * step)
        east, south = to_world @ (box.right * step, box.bottom * step)
        return float(west), float(south), float(east), float(north)


class MapTiles(ImageTiles):
    """A raster as tiles of a map, see-through where it has no data; safe to use from several threads."""

    def __init__(self, image: ImageTiles) -> None:
        """Raises RequestError for what no map service's grid can show."""
        self.image = image
        self.path = image.source.path
        bounds, zoom = _place_of(self.path)
        self.grid = Grid.around(bounds, zoom)
        back = ~self.grid.georef.transform
        (left, top), (right, bottom) = back @ (bounds[0], bounds[3]), back @ (bounds[2], bounds[1])
        self.home = (float(top), float(left), float(bottom - top), float(right - left))
        """(y, x, height, width) of the raster on the map."""
        # Nothing is read of it: it says where the pixels of the map lie.
        empty = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (self.grid.size.height, self.grid.size.width, 3))
        self.source = ArraySource(empty, georef=self.grid.georef)
        self.levels = self.grid.levels

    @cached_property
    def look(self) -> Look:
        return self.image.look

    @property
    def progress(self) -> float:
        return 1.0

    def tile(self, level: int, row: int, column: int, look: Look | None = None) -> Tile:
        """A PNG."""
        if not 0 <= level < len(self.levels):
            raise IndexError(f"there is no level {level} among {len(self.levels)}")
        box = self.levels[level].box(row, column)
        pixels, valid = _part(self.path, self.grid.bounds(box, level), box.size, "bilinear")
        rgb = (look or self.look).render(pixels)
        rgba = np.dstack([rgb, np.where(valid, np.uint8(255), np.uint8(0))])
        return Tile(bytes(imagecodecs.png_encode(np.ascontiguousarray(rgba), level=1)), final=True, kind="image/png")

    def close(self) -> None:
        """Nothing stays open."""


class MapMask:
    """A mask that was written as mask.tif, on the grid of a map; safe to use from several threads."""

    def __init__(self, path: Path, grid: Grid, classes: Sequence[LabelClass]) -> None:
        self.path, self.grid, self.classes = path, grid, classes
        self.sizes = tuple(level.size for level in grid.levels)
        self.place = Place(0.0, 0.0, 1.0, 1.0)

    def tile(self, level: int, row: int, column: int) -> NDArray[np.uint8]:
        """(h, w) class values, no data where there is no mask. Raises IndexError where there is no such tile."""
        return self.read(tile_box(self.sizes, level, row, column), level)

    def thin_tile(self, level: int, row: int, column: int) -> tuple[NDArray[np.uint8], bool]:
        """`tile`: on a map there are no other levels."""
        return self.tile(level, row, column), True

    def read(self, box: Box, level: int) -> NDArray[np.uint8]:
        """(h, w) class values: those of the nearest pixels of the mask."""
        values, valid = _part(str(self.path), self.grid.bounds(box, level), box.size, "nearest")
        return np.where(valid, values[..., 0], np.uint8(NODATA)).astype(np.uint8)

    def count(self, corners: Sequence[tuple[float, float]]) -> Count:
        """What a polygon of (y, x) corners in pixels of the map holds."""
        return count(self, corners)


def _side(zoom: int) -> float:
    """Metres of EPSG:3857 along a tile."""
    return 2 * EDGE / float(2**zoom)


def _place_of(path: str) -> tuple[tuple[float, float, float, float], int]:
    """((west, south, east, north) in EPSG:3857, the zoom that shows its own pixels)."""
    try:
        with rasterio.open(path) as dataset:
            bounds = transform_bounds(dataset.crs, "EPSG:3857", *dataset.bounds)
            warped, _, _ = calculate_default_transform(
                dataset.crs, "EPSG:3857", dataset.width, dataset.height, *dataset.bounds
            )
    except (RasterioError, ValueError) as error:
        raise RequestError(f"{path} cannot be laid on a map: {' '.join(str(error).split())}") from error
    zoom = max(0, math.ceil(math.log2(_side(0) / TILE / abs(warped.a)) - 0.1))
    if not np.isfinite(bounds).all():
        raise RequestError(f"{path} reaches beyond what a Web Mercator map shows; look at it without the map")
    return (float(bounds[0]), float(bounds[1]), float(bounds[2]), float(bounds[3])), zoom


def _part(
    path: str, bounds: tuple[float, float, float, float], size: Size, how: Any
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """((h, w, bands), (h, w) valid) of a rectangle of EPSG:3857."""
    from rio_tiler.errors import RioTilerError
    from rio_tiler.io import Reader

    with Reader(path) as reader:
        own = transform_bounds(reader.dataset.crs, "EPSG:3857", *reader.dataset.bounds)
        apart = bounds[0] >= own[2] or bounds[2] <= own[0] or bounds[1] >= own[3] or bounds[3] <= own[1]
        if apart:
            bands = reader.dataset.count
            return np.zeros((size.height, size.width, bands), reader.dataset.dtypes[0]), np.zeros(
                (size.height, size.width), bool
            )
        try:
            part = reader.part(
                bounds, dst_crs="EPSG:3857", bounds_crs="EPSG:3857", height=size.height, width=size.width,
                resampling_method="nearest" if how == "nearest" else "bilinear", reproject_method=how,
            )  # fmt: skip
        except RioTilerError as error:
            raise RequestError(f"{path} cannot be laid on a map: {' '.join(str(error).split())}") from error
    return np.moveaxis(np.asarray(part.data), 0, -1), np.asarray(part.mask) > 0
