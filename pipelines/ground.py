"""Whether two pieces of images show the same ground."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

import numpy as np
import pyproj
import shapely
from pyproj.exceptions import CRSError, ProjError
from shapely.affinity import translate

from tiling import Box, Size
from tiling.georef import Georef, box_corners

POINTS: Final = 20
"""In how many steps a side is followed from one CRS into another, where it is a curve."""
SLIVER: Final = 1e-4
"""The share of the smaller piece up to which two of different CRSs only touch: what those steps leave is far below."""


Piece = tuple[Georef, Box]
"""A rectangle of pixels, and where they lie."""


def first_overlap(ones: Sequence[Piece], others: Sequence[Piece]) -> tuple[int, int] | None:
    """Indices of one piece of each side that share ground, by `overlap`; None where no two do.

    Within a CRS a tree finds who is near, so that many pieces take little time.
    """
    within: dict[str, list[int]] = {}
    for i, (georef, _) in enumerate(others):
        if georef.crs is not None:
            within.setdefault(georef.crs, []).append(i)
    trees = {crs: shapely.STRtree([_extent(*others[i]) for i in indices]) for crs, indices in within.items()}
    for i, (georef, area) in enumerate(ones):
        for crs, indices in within.items():
            if georef.crs is None:
                break
            near = np.sort(trees[crs].query(_extent(georef, area))) if crs == georef.crs else range(len(indices))
            for j in near:
                if overlap(georef, area, *others[indices[j]]):
                    return i, indices[j]
    return None


def overlap(one: Georef, area: Box, other: Georef, other_area: Box) -> bool:
    """Whether two rectangles of pixels share ground; False where either lies in no CRS, or in none of the Earth."""
    if one.crs is None or other.crs is None:
        return False
    if one.crs == other.crs:
        return _boxes_overlap(_bounds(one, area), _bounds(other, other_area))
    first, second = _outline(one, area), _outline(other, other_area)
    # The same ground may be told a whole turn further east or west.
    turned = [translate(second, xoff=turn) for turn in (-360, 0, 360)]
    shared = shapely.area(shapely.intersection(first, turned)).max()
    return bool(shared > SLIVER * min(first.area, second.area))


def alike(mask: Georef, image: Georef, size: Size) -> bool:
    """Whether files of one size have their pixels in the same places, to half a pixel; True where one does not say."""
    if mask.crs is None or image.crs is None or mask.transform.is_identity:
        return True
    corners = np.array([(0, 0), (size.width, 0), (0, size.height)], float)
    x, y = np.array([mask.transform @ (x, y) for x, y in corners]).T
    if mask.crs != image.crs:
        there = _between(mask.crs, image.crs)
        if there is None:
            return False
        x, y = there.transform(x, y)
    found = [~image.transform @ place for place in zip(x, y, strict=True)]
    return bool(np.allclose(found, corners, rtol=0, atol=0.5))


def _boxes_overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether rectangles (left, top, right, bottom), y up, do more than share an edge."""
    (left, top, right, bottom), (left2, top2, right2, bottom2) = one, other
    across, along = min(right, right2) - max(left, left2), min(top, top2) - max(bottom, bottom2)
    narrow, short = min(right - left, right2 - left2), min(top - bottom, top2 - bottom2)
    return across > 1e-6 * narrow and along > 1e-6 * short


def _extent(georef: Georef, area: Box) -> shapely.Polygon:
    left, top, right, bottom = _bounds(georef, area)
    return shapely.box(left, bottom, right, top)


@functools.lru_cache(maxsize=2**14)
def _bounds(georef: Georef, area: Box) -> tuple[float, float, float, float]:
    """Left, top, right, bottom in the world, y up."""
    corners = np.array(box_corners(georef, area))
    (left, bottom), (right, top) = corners.min(axis=0), corners.max(axis=0)
    return float(left), float(top), float(right), float(bottom)


@functools.lru_cache(maxsize=2**14)
def _outline(georef: Georef, area: Box) -> shapely.Geometry:
    """The edge of a rectangle of pixels in degrees (longitude, latitude); empty where its CRS cannot be brought there.

    Longitudes go on beyond 180 rather than jump.
    """
    corners = np.array(box_corners(georef, area))
    steps = np.arange(POINTS)[:, None] / POINTS
    x, y = np.concatenate([a + (b - a) * steps for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)]).T
    to_degrees = _between(str(georef.crs), "EPSG:4326")
    if to_degrees is None:
        return shapely.Polygon()
    longitude, latitude = to_degrees.transform(x, y)
    if not np.isfinite([longitude, latitude]).all():
        return shapely.Polygon()
    return shapely.make_valid(shapely.polygons(np.stack([np.unwrap(longitude, period=360), latitude], axis=1)))


@functools.lru_cache
def _between(crs: str, other: str) -> pyproj.Transformer | None:
    """From one CRS to another, x before y; None where one of them has no place on the Earth."""
    try:
        return pyproj.Transformer.from_crs(crs, other, always_xy=True)
    except (CRSError, ProjError):
        return None
