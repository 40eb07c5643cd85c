"""Numbers for people beside a picture: areas of what was drawn, and where on Earth a pixel lies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyproj

from pipelines.display.masks import Count
from tiling import NODATA, Georef, Size


def areas_of(
    count: Count, mask: Any, corners: Sequence[tuple[float, float]], georef: Georef | None, size: Size | None
) -> list[dict[str, Any]]:
    """For each class value its pixels, area (um2 or m2, None where unknown) and share of what is data."""
    unit = _pixel_area(georef, size, corners)
    each = None if unit is None else unit[0] * mask.place.step_y * mask.place.step_x
    valid = sum(n for value, n in count.pixels.items() if value != NODATA)
    return [
        {
            "value": value,
            "pixels": round(n),
            "area": None if each is None else n * each,
            "unit": unit[1] if unit else None,
            "share": n / valid if valid and value != NODATA else None,
        }
        for value, n in sorted(count.pixels.items())
    ]


def lonlat(georef: Georef, y: float, x: float) -> tuple[float, float] | None:
    """Longitude and latitude (WGS 84) of a level-0 pixel position; None for what lies nowhere on Earth."""
    if georef.crs is None:
        return None
    lon, lat = _transformer(georef.crs).transform(*georef.world(y, x))
    return (float(lon), float(lat)) if np.isfinite([lon, lat]).all() else None


def pixel_at(georef: Georef, lon: float, lat: float) -> tuple[float, float] | None:
    """Level-0 (y, x) of a longitude and latitude (WGS 84); None for what is nowhere on Earth, or beyond the CRS."""
    if georef.crs is None:
        return None
    place = _transformer(georef.crs).transform(lon, lat, direction="INVERSE")
    x, y = ~georef.transform @ place
    return (float(y), float(x)) if np.isfinite([y, x]).all() else None


def crs_name(georef: Georef) -> str | None:
    """Like 'EPSG:32617', or the CRS's own name."""
    if georef.crs is None:
        return None
    crs = pyproj.CRS.from_user_input(georef.crs)
    authority = crs.to_authority()
    return ":".join(authority) if authority else crs.name


@lru_cache(maxsize=16)
def _transformer(crs: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)


def _pixel_area(
    georef: Georef | None, size: Size | None, corners: Sequence[tuple[float, float]]
) -> tuple[float, str] | None:
    """(area, unit) of a level-0 pixel at the middle of what was drawn."""
    if georef is None or size is None or georef.unit is None:
        return None
    if georef.unit == "um":
        return abs(georef.transform.determinant), "um2"
    middle = sum(y for y, _ in corners) / len(corners), sum(x for _, x in corners) / len(corners)
    moved = georef.shifted(middle[0] - 0.5, middle[1] - 0.5).spacing(Size(1, 1))
    return (moved.y * moved.x, "m2") if moved is not None else None
