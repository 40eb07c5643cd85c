"""The outlines of what one block holds: each connected part as a polygon on the pixel grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import rasterio.features
import shapely
from affine import Affine
from numpy.typing import NDArray

from tiling.geometry import Box
from tiling.labels import NODATA

Ring = NDArray[np.int32]
"""(n, 2) corners of pixels as (x, y), the first not repeated; what it bounds lies on the left as seen on a screen."""


@dataclass(frozen=True, slots=True)
class Outline:
    """A part of a block that holds one value and hangs together through pixels' sides."""

    value: int
    shell: Ring
    """Around it."""
    holes: tuple[Ring, ...]
    """Inside it; they run the other way round."""


def outlines(values: NDArray[np.uint8], box: Box, tolerance: float = 0.0) -> list[Outline]:
    """All parts of the labels (h, w) of `box`, in the image's pixels; no data has none.

    Parts that touch at a corner only are two (GDAL's 4-connectedness), so no ring meets itself. With a `tolerance`, in
    pixels, corners are left out where the triangle that each makes with its neighbours is smaller than tolerance
    squared (Visvalingam and Whyatt 1993): neighbours keep one common border, and the block's own border stays.
    """
    place = Affine.translation(box.x, box.y)
    mask = None if tolerance else values != NODATA
    found = rasterio.features.shapes(values, mask=mask, connectivity=4, transform=place)
    parts = [(int(value), [_open(ring) for ring in shape["coordinates"]]) for shape, value in found]
    if tolerance:
        parts = _simplified(parts, _meetings(values), box, tolerance)
    return [Outline(value, rings[0], tuple(rings[1:])) for value, rings in parts if value != NODATA]


def area2(ring: Ring) -> int:
    """Twice the area in pixels: positive for shells, negative for holes."""
    x, y = ring.T.astype(np.int64)
    return int((np.roll(x, -1) * y - x * np.roll(y, -1)).sum())


def without_straight_corners(ring: Ring) -> Ring:
    """Leaves out what lies on the line between its neighbours."""
    back, ahead = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
    cross = back[:, 0].astype(np.int64) * ahead[:, 1] - back[:, 1].astype(np.int64) * ahead[:, 0]
    return ring if cross.all() else ring[cross != 0]


def placed(ring: Ring, place: Affine) -> NDArray[np.float64]:
    """(n, 2) where a map of (x, y) takes the corners."""
    x, y = ring.T.astype(np.float64)
    return np.stack([place.a * x + place.b * y + place.c, place.d * x + place.e * y + place.f], 1)


def _open(ring: list[tuple[float, float]]) -> Ring:
    return np.array(ring[:-1], np.int32)


def _meetings(values: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(h + 1, w + 1): the corners of pixels at which three parts or more meet, or two cross."""
    padded = np.pad(values.astype(np.int16), 1, constant_values=-1)
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return np.asarray(sum((side.astype(np.uint8) for side in (a != b, c != d, a != c, b != d)), np.uint8(0)) > 2)


def _with_meetings(ring: Ring, meetings: NDArray[np.bool_], box: Box) -> Ring:
    """The ring with those on its straight edges: GEOS wants corners where neighbours have them."""
    step = np.roll(ring, -1, 0) - ring
    lengths = np.abs(step).sum(axis=1)
    along = np.arange(lengths.sum()) - (np.cumsum(lengths) - lengths).repeat(lengths)
    every = ring.repeat(lengths, 0) + np.sign(step).repeat(lengths, 0) * along[:, None]
    return np.asarray(every[(along == 0) | meetings[every[:, 1] - box.y, every[:, 0] - box.x]])


def _simplified(
    parts: list[tuple[int, list[Ring]]], meetings: NDArray[np.bool_], box: Box, tolerance: float
) -> list[tuple[int, list[Ring]]]:
    """All parts of a block at once, no data too, so that what two of them share stays shared."""
    noded = [[_with_meetings(ring, meetings, box) for ring in rings] for _, rings in parts]
    whole = [shapely.Polygon(rings[0], rings[1:]) for rings in noded]
    fewer = shapely.coverage_simplify(whole, tolerance, simplify_boundary=False)
    fewer = shapely.orient_polygons(fewer, exterior_cw=True)  # with y up, as GEOS has it
    return [
        (value, [_corners(ring) for ring in (shape.exterior, *shape.interiors)])
        for (value, _), shape in zip(parts, fewer, strict=True)
    ]


def _corners(ring: shapely.LinearRing) -> Ring:
    return np.asarray(shapely.get_coordinates(ring)[:-1].astype(np.int32))
