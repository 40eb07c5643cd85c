"""A raster on a map lies where it lies on Earth, with the pixels that GDAL warps there."""

from __future__ import annotations

import io
import math
from pathlib import Path

import morecantile
import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import from_bounds
from rasterio.vrt import WarpedVRT

from pipelines.display.facts import areas_of
from pipelines.display.mercator import BaseMap, Grid, MapMask, MapTiles
from pipelines.display.tiles import open_tiles
from pipelines.errors import RequestError
from tiling import Box, LabelClass

CLASSES = (LabelClass(0, "land", (1, 1, 1)), LabelClass(1, "water", (0, 0, 255)))
# rasterio and rio-tiler multiply transforms as affine 3 would rather not have it.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")
TMS = morecantile.tms.get("WebMercatorQuad")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Three bands in UTM at 52 degrees north, 0.5 m a pixel, with a corner of no data."""
    pixels = np.random.default_rng(0).integers(1, 256, (3, 30, 40), np.uint8).repeat(10, 1).repeat(10, 2)
    pixels[:, :60, :80] = 0
    return _write(tmp_path / "scene.tif", pixels, 0)


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    values = np.zeros((1, 300, 400), np.uint8)
    values[0, 100:200, 50:250] = 1
    return _write(tmp_path / "mask.tif", values, 255)


def _write(path: Path, pixels: np.ndarray, nodata: int) -> Path:
    with rasterio.open(
        path, "w", driver="GTiff", count=len(pixels), height=300, width=400, dtype="uint8", nodata=nodata,
        crs="EPSG:32633", transform=rasterio.Affine(0.5, 0, 390000, 0, -0.5, 5820000),
    ) as out:  # fmt: skip
        out.write(pixels)
    return path


@given(
    west=st.floats(-2e7, 1.9e7), south=st.floats(-1.9e7, 1.8e7), side=st.floats(1, 9e5), zoom=st.integers(0, 22)
)  # fmt: skip
def test_each_tile_is_one_of_the_map_services_and_the_raster_lies_within(
    west: float, south: float, side: float, zoom: int
) -> None:
    grid = Grid.around((west, south, west + side, south + side), zoom)
    for level, known in enumerate(grid.levels):
        down, across = known.tiles
        assert (known.size.height % 256, known.size.width % 256) == (0, 0)
        for row, column in ((0, 0), (down - 1, across - 1)):
            tile = morecantile.Tile(grid.x // 2**level + column, grid.y // 2**level + row, grid.zoom - level)
            assert np.allclose(grid.bounds(known.box(row, column), level), TMS.xy_bounds(tile), atol=1e-3)
    left, bottom, right, top = grid.bounds(grid.size.box, 0)
    assert left <= west and right >= west + side and bottom <= south and top >= south + side  # noqa: PT018
    assert max(grid.levels[-1].tiles) <= 3


def test_a_tile_is_what_gdal_warps_there_and_see_through_elsewhere(scene: Path, tmp_path: Path) -> None:
    tiles = MapTiles(open_tiles(scene, tmp_path / "cache"))
    with rasterio.open(scene) as dataset:
        middle = dataset.xy(150, 200)
        lon, lat = rasterio.warp.transform("EPSG:32633", "EPSG:4326", [middle[0]], [middle[1]])
    tile = TMS.tile(lon[0], lat[0], tiles.grid.zoom)
    data = tiles.tile(0, tile.y - tiles.grid.y, tile.x - tiles.grid.x)
    shown = np.asarray(Image.open(io.BytesIO(data.data)))
    assert (data.kind, shown.shape) == ("image/png", (256, 256, 4))
    with rasterio.open(scene) as dataset, WarpedVRT(
        dataset, crs=CRS.from_epsg(3857), resampling=rasterio.enums.Resampling.bilinear,
        transform=from_bounds(*TMS.xy_bounds(tile), 256, 256), width=256, height=256,
    ) as warped:  # fmt: skip
        wanted = np.moveaxis(warped.read(), 0, -1)
    inside = shown[..., 3] == 255
    assert inside.any()
    assert np.abs(shown[inside][:, :3].astype(int) - wanted[inside]).mean() < 2
    assert np.asarray(Image.open(io.BytesIO(tiles.tile(0, 0, 0).data)))[..., 3].max() == 0
    with pytest.raises(IndexError):
        tiles.tile(0, -1, 0)


def test_a_mask_lies_on_its_image_and_areas_are_those_on_the_ground(scene: Path, mask: Path, tmp_path: Path) -> None:
    tiles = MapTiles(open_tiles(scene, tmp_path / "cache"))
    on_map = MapMask(mask, tiles.grid, CLASSES)
    size = tiles.grid.size
    corners = [(0, 0), (0, size.width), (size.height, size.width), (size.height, 0)]
    count = on_map.count(corners)
    rows = {r["value"]: r for r in areas_of(count, on_map, corners, tiles.grid.georef, size)}
    assert rows[1]["unit"] == "m2"
    assert rows[1]["area"] == pytest.approx(100 * 200 * 0.25, rel=0.02)
    assert rows[0]["area"] == pytest.approx((300 * 400 - 100 * 200) * 0.25, rel=0.02)
    # The whole fits a few tiles zoomed out, and is there.
    assert (on_map.read(Box(0, 0, on_map.sizes[-1].height, on_map.sizes[-1].width), len(on_map.sizes) - 1) == 1).any()
    assert math.isclose(on_map.place.step_y, 1)


@pytest.mark.parametrize("url", ["", "file:///{z}/{x}/{y}", "https://maps.example/{z}/{x}.png", "javascript:{z}{x}{y}"])
def test_an_address_that_is_no_map_service_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match="no map service"):
        BaseMap(url)
