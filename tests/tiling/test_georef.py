"""One affine puts pixels in the world; lengths and areas agree with rasterio, pyproj and the size of the Earth."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from tiling.exports.ruler import Ruler
from tiling.geometry import Box, Size
from tiling.georef import Georef, Spacing, box_corners

UTM = Georef(Affine(0.3, 0, 500_000, 0, -0.3, 5_000_000), "crs", "EPSG:32633")
STEPS = st.floats(0.1, 50)


@pytest.mark.parametrize(
    ("text", "spacing"),
    [
        ("0.25um", Spacing.square(0.25, "um")),
        ("0.25 µm", Spacing.square(0.25, "um")),
        ("250nm", Spacing.square(0.25, "um")),
        ("0.3 m", Spacing.square(0.3, "m")),
        ("30cm", Spacing.square(0.3, "m")),
        ("1e-1m", Spacing.square(0.1, "m")),
        ("2KM", Spacing.square(2000, "m")),
    ],
)
def test_a_pixel_size_is_read_from_text(text: str, spacing: Spacing) -> None:
    read = Spacing.parse(text)
    assert read.unit == spacing.unit
    assert read.metres == pytest.approx(spacing.metres)


@pytest.mark.parametrize(
    "text", ["", "0.25", "um", "-1um", "0um", "1.2.3um", "0.25 pixels", "1 degree", "nan um", "1e400m"]
)
def test_text_that_is_no_pixel_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"write a number and a unit, like 0\.25um"):
        Spacing.parse(text)


@pytest.mark.parametrize("side", [0, -1, math.inf, math.nan])
def test_a_pixel_without_a_positive_size_is_refused(side: float) -> None:
    with pytest.raises(ValueError, match="positive size"):
        Spacing(1, side, "m")


@given(STEPS, STEPS)
def test_micrometres_and_metres_are_the_same_length(y: float, x: float) -> None:
    spacing = Spacing(y, x, "um")
    assert spacing.to("m").to("um").metres == pytest.approx(spacing.metres)
    assert spacing.metres == pytest.approx((y * 1e-6, x * 1e-6))


@given(STEPS, STEPS, st.integers(-1000, 1000), st.integers(-1000, 1000))
def test_a_coarser_grid_and_a_crop_keep_every_corner_in_place(sy: float, sx: float, y: int, x: int) -> None:
    assert UTM.scaled(sy, sx).world(y, x) == pytest.approx(UTM.world(y * sy, x * sx), abs=1e-6)
    assert UTM.shifted(y, x).world(3, 5) == pytest.approx(UTM.world(3 + y, 5 + x), abs=1e-6)


def test_world_corners_are_those_of_rasterio(shared_data: Path) -> None:
    with rasterio.open(shared_data / "odd/geo/RGBA.uint16.tif") as dataset:
        georef = Georef(dataset.transform, "crs", dataset.crs.to_wkt())
        left, bottom, right, top = dataset.bounds
        corners = box_corners(georef, Box(0, 0, dataset.height, dataset.width))
    assert np.allclose(corners, [(left, top), (right, top), (right, bottom), (left, bottom)], rtol=0, atol=1e-6)


def test_degrees_become_metres_at_the_images_own_latitude() -> None:
    step = 0.001
    for latitude in (0.0, 38.0, -60.0):
        georef = Georef(Affine(step, 0, 10.0, 0, -step, latitude + step / 2), "crs", "EPSG:4326")
        spacing = georef.spacing(Size(1, 1))
        geod = pyproj.Geod(ellps="WGS84")
        _, _, across = geod.inv(10.0, latitude, 10.0 + step, latitude)
        _, _, down = geod.inv(10.0, latitude - step / 2, 10.0, latitude + step / 2)
        assert spacing is not None
        assert (spacing.y, spacing.x, spacing.unit) == (pytest.approx(down), pytest.approx(across), "m")


def test_web_mercator_pixels_shrink_away_from_the_equator() -> None:
    transform = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True)
    x, y = transform.transform(20.0, 60.0)
    spacing = Georef(Affine(1, 0, x, 0, -1, y), "crs", "EPSG:3857").spacing(Size(1, 1))
    assert spacing is not None
    assert spacing.x == pytest.approx(math.cos(math.radians(60)), rel=5e-3)


def test_a_rotated_and_a_south_up_grid_have_positive_pixels() -> None:
    turned = Georef(Affine.translation(5e5, 5e6) @ Affine.rotation(30) @ Affine.scale(2, -3), "crs", "EPSG:32633")
    south_up = Georef(Affine(2, 0, 5e5, 0, 3, 5e6), "crs", "EPSG:32633")
    for georef in (turned, south_up):
        spacing, areas = georef.spacing(Size(10, 10)), georef.row_areas(Size(10, 10))
        assert spacing is not None
        assert areas is not None
        assert (spacing.y, spacing.x) == (pytest.approx(3, rel=1e-3), pytest.approx(2, rel=1e-3))
        assert areas == pytest.approx(6, rel=2e-3)


def test_the_pixels_of_a_world_map_add_up_to_the_earths_surface() -> None:
    for step_y in (-0.5, 0.5):
        georef = Georef(Affine(0.5, 0, -180, 0, step_y, -math.copysign(90, step_y)), "crs", "EPSG:4326")
        areas = georef.row_areas(Size(360, 720))
        assert areas is not None
        assert areas.sum() * 720 == pytest.approx(5.10066e14, rel=2e-4)


def test_areas_on_a_slide_are_micrometres_squared_and_unknown_without_a_spacing() -> None:
    areas = Georef.micrometres(Spacing(0.5, 0.25, "um")).row_areas(Size(4, 9))
    assert areas is not None
    assert np.array_equal(areas, np.full(4, 0.125))
    assert Georef.pixels().row_areas(Size(4, 9)) is None
    assert Georef.pixels().spacing(Size(4, 9)) is None


def test_a_place_outside_the_crs_has_no_spacing_rather_than_a_wrong_one() -> None:
    assert Georef(Affine(1, 0, 0, 0, -1, 200), "crs", "EPSG:4326").spacing(Size(10, 10)) is None


def test_a_local_crs_is_measured_in_its_own_unit() -> None:
    feet = 'LOCAL_CS["site",UNIT["US survey foot",0.304800609601219],AXIS["E",EAST],AXIS["N",NORTH]]'
    spacing = Georef(Affine(2, 0, 0, 0, -2, 0), "crs", feet).spacing(Size(10, 10))
    assert spacing is not None
    assert spacing.x == pytest.approx(0.6096, rel=1e-4)


def test_a_transform_that_flattens_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="degenerate"):
        Georef(Affine(0, 0, 0, 0, -1, 0))


def test_a_crs_and_its_unit_go_together() -> None:
    with pytest.raises(ValueError, match="go together"):
        Georef(Affine.identity(), "crs")
    with pytest.raises(ValueError, match="go together"):
        Georef(Affine.identity(), "um", "EPSG:4326")


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:27572", Affine(10, 0, 600_000, 0, -10, 2_400_000)),  # NTF (Paris), in metres over grads
        ("EPSG:4807", Affine(1e-4, 0, 0.0, 0, -1e-4, 54.4)),  # grads themselves
    ],
)
def test_grads_are_not_taken_for_degrees(crs: str, transform: Affine) -> None:
    georef, size = Georef(transform, "crs", crs), Size(50, 50)
    to_lambert = pyproj.Transformer.from_crs(crs, "EPSG:2154", always_xy=True)  # metres, true to 1 in 1000 here
    ring = box_corners(georef, Box(0, 0, size.height, size.width))
    x, y = np.array(to_lambert.transform(*zip(*ring, strict=True)))
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    rows, ruler, spacing = georef.row_areas(size), Ruler.of(georef, size), georef.spacing(size)
    assert rows is not None
    assert ruler is not None
    assert spacing is not None
    assert rows.sum() * size.width == pytest.approx(area, rel=3e-3)
    assert ruler.area_of_pixels(np.ones((50, 50), bool), size.box) == pytest.approx(area, rel=3e-3)
    assert spacing.y * spacing.x * size.pixels == pytest.approx(area, rel=3e-3)
