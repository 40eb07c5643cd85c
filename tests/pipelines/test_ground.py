"""Overlap on the ground, whatever the CRSs; the ground truth is PROJ's, point by point."""

from __future__ import annotations

import numpy as np
import pyproj
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ground import overlap
from tiling import Box
from tiling.georef import Georef

BOX = Box(0, 0, 100, 100)


def around(crs: str, longitude: float, latitude: float, side: float) -> Georef:
    """100 x 100 pixels of a square of `side` units of a CRS, with its middle at a place."""
    x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(longitude, latitude)
    return Georef(Affine(side / 100, 0, x - side / 2, 0, -side / 100, y + side / 2), "crs", crs)


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (("EPSG:32632", 12.0, 45.0, 1000), ("EPSG:32633", 12.0, 45.0, 1000), True),
        (("EPSG:32632", 12.0, 45.0, 1000), ("EPSG:32633", 12.011, 45.0, 1000), True),
        (("EPSG:32632", 12.0, 45.0, 1000), ("EPSG:32633", 12.014, 45.0, 1000), False),
        (("EPSG:32632", 12.0, 45.0, 100_000), ("EPSG:32633", 12.1, 45.2, 100), True),
        (("EPSG:32632", 9.0, 45.0, 1000), ("EPSG:32633", 15.0, 45.0, 1000), False),
        (("EPSG:32660", 179.999, 0.5, 1000), ("EPSG:32601", -179.999, 0.5, 1000), True),
        (("EPSG:32660", 179.9, 0.5, 1000), ("EPSG:32601", -179.9, 0.5, 1000), False),
        (("EPSG:4326", 0.0, 0.0, 358), ("EPSG:32633", 15.0, 45.0, 1000), True),
        (("EPSG:3031", 0.0, -90.0, 1000), ("EPSG:32633", 15.0, 45.0, 1000), False),
        (("EPSG:3857", 12.0, 45.0, 1000), ('LOCAL_CS["site",UNIT["metre",1]]', 12.0, 45.0, 1000), False),
    ],
)
def test_pieces_in_two_crss_overlap_where_they_share_ground(
    one: tuple[str, float, float, float], other: tuple[str, float, float, float], shared: bool
) -> None:
    first = around(*one)
    second = Georef(first.transform, "crs", other[0]) if other[0].startswith("LOCAL") else around(*other)
    assert overlap(first, BOX, second, BOX) == shared
    assert overlap(second, BOX, first, BOX) == shared


@settings(max_examples=60)
@given(st.floats(-0.03, 0.03), st.floats(-0.03, 0.03), st.sampled_from([300.0, 2000.0]))
def test_a_shared_place_inside_both_is_an_overlap(east: float, north: float, side: float) -> None:
    one, other = around("EPSG:32632", 12.0, 45.0, 2000), around("EPSG:32633", 12.0 + east, 45.0 + north, side)
    at = np.stack(np.meshgrid(np.linspace(1, 99, 30), np.linspace(1, 99, 30)), axis=-1).reshape(-1, 2)
    x, y = np.array([other.world(row, column) for column, row in at]).T
    there = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:32632", always_xy=True).transform(x, y)
    columns, rows = ~one.transform @ there
    inside = (columns > 0) & (columns < 100) & (rows > 0) & (rows < 100)
    found = overlap(one, BOX, other, BOX)
    assert found or not inside.any()
    near = (columns > -3) & (columns < 103) & (rows > -3) & (rows < 103)
    assert not found or near.any()


def test_neighbours_in_two_crss_that_only_touch_do_not_overlap() -> None:
    one = around("EPSG:4326", 12.0, 45.0, 0.1)
    # The same edge at 12.05 degrees east, once as a meridian and once in metres of Mercator.
    x, y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True).transform(12.05, 45.05)
    other = Georef(Affine(50, 0, x, 0, -50, y), "crs", "EPSG:3857")
    assert not overlap(one, BOX, other, BOX)
    assert overlap(one, BOX, Georef(Affine(50, 0, x - 50, 0, -50, y), "crs", "EPSG:3857"), BOX)


def test_what_lies_in_no_crs_overlaps_nothing() -> None:
    assert not overlap(Georef.pixels(), BOX, Georef.pixels(), BOX)
    assert not overlap(Georef.pixels(), BOX, around("EPSG:32632", 12.0, 45.0, 1000), BOX)
