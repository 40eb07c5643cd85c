"""Where pixels lie: one affine from level-0 pixel corners to the world, and what a pixel measures there."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal

import numpy as np
import pyproj
from affine import Affine
from numpy.typing import NDArray
from pyproj.crs import GeographicCRS

from tiling.geometry import Box, Size

Unit = Literal["um", "m"]
PLAUSIBLE_UM: Final = (0.02, 20.0)
"""Pixel sizes, in micrometres, that a slide can have; 72 dpi (353 um) is an editor's default, not a measurement."""
METRES: dict[str, float] = {"nm": 1e-9, "um": 1e-6, "µm": 1e-6, "mm": 1e-3, "cm": 1e-2, "m": 1.0, "km": 1e3}


@dataclass(frozen=True, slots=True)
class Spacing:
    """The size of a pixel on the ground or on the glass."""

    y: float
    """Height of a pixel, in `unit`."""
    x: float
    """Width of a pixel, in `unit`."""
    unit: Unit

    def __post_init__(self) -> None:
        if not (0 < self.y < math.inf and 0 < self.x < math.inf):
            raise ValueError(f"a pixel must have positive size, got {self.y} x {self.x} {self.unit}")

    @classmethod
    def square(cls, side: float, unit: Unit) -> Spacing:
        return cls(side, side, unit)

    @classmethod
    def parse(cls, text: str) -> Spacing:
        """Reads '0.25um', '0.3 m' or '30cm'; raises ValueError for anything else."""
        match = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(nm|um|µm|mm|cm|m|km)\s*", text, re.IGNORECASE)
        try:
            value = float(match[1]) if match else 0.0
        except ValueError:
            value = 0.0
        if not match or not 0 < value < math.inf:
            raise ValueError(f"cannot read {text!r} as a pixel size; write a number and a unit, like 0.25um or 0.3m")
        unit = match[2].lower()
        small = METRES[unit] <= METRES["um"]
        side = value * METRES[unit] / METRES["um" if small else "m"]
        return cls.square(side, "um" if small else "m")

    @property
    def metres(self) -> tuple[float, float]:
        """(height, width) of a pixel in metres."""
        return self.y * METRES[self.unit], self.x * METRES[self.unit]

    def to(self, unit: Unit) -> Spacing:
        factor = METRES[self.unit] / METRES[unit]
        return Spacing(self.y * factor, self.x * factor, unit)

    def __str__(self) -> str:
        sides = f"{self.y:.4g}" if math.isclose(self.y, self.x, rel_tol=1e-3) else f"{self.y:.4g} x {self.x:.4g}"
        return f"{sides} {self.unit}/px"


@dataclass(frozen=True)
class Georef:
    """The place of an image's pixels in the world.

    The affine takes pixel corners as (x, y) = (column, row) of level 0, (0, 0) being the top-left corner of the
    top-left pixel, and gives world coordinates: CRS units for a raster with a CRS, micrometres from the slide's
    origin for a slide (the image's top-left, unless it was scanned in part), and where the unit is unknown (None)
    whatever the file's transform gives, or level-0 pixels.
    """

    transform: Affine
    unit: Literal["um", "crs"] | None = None
    crs: str | None = None
    """WKT (or any text that PROJ reads) when `unit` is 'crs'."""

    def __post_init__(self) -> None:
        if self.transform.is_degenerate:
            raise ValueError(f"the transform {tuple(self.transform)[:6]} is degenerate: it maps an area to a line")
        if (self.unit == "crs") != (self.crs is not None):
            raise ValueError(f"unit 'crs' and a crs go together, got unit {self.unit!r} and crs {self.crs!r}")

    @classmethod
    def pixels(cls) -> Georef:
        """Nothing known: the world is the level-0 pixel grid."""
        return cls(Affine.identity())

    @classmethod
    def micrometres(cls, spacing: Spacing) -> Georef:
        """A slide: micrometres from the top-left corner."""
        um = spacing.to("um")
        return cls(Affine.scale(um.x, um.y), "um")

    def scaled(self, y: float, x: float) -> Georef:
        """For a grid whose pixels are y x x level-0 pixels large, with the same top-left corner."""
        return replace(self, transform=self.transform @ Affine.scale(x, y))

    def shifted(self, y: float, x: float) -> Georef:
        """For a crop that starts at row y and column x."""
        return replace(self, transform=self.transform @ Affine.translation(x, y))

    def restated(self, spacing: Spacing) -> Georef:
        """A slide's place with pixels of another size: the image starts as many pixels from the slide's origin."""
        x, y = ~self.transform @ (0.0, 0.0)
        return Georef.micrometres(spacing).shifted(-y, -x)

    def world(self, y: float, x: float) -> tuple[float, float]:
        """World (x, y) of the pixel corner at row y, column x."""
        wx, wy = self.transform @ (x, y)
        return float(wx), float(wy)

    def spacing(self, size: Size) -> Spacing | None:
        """The size of the pixel at the image's middle: ground metres (geodesic, whatever the CRS) or micrometres.

        None where the georeference says nothing about it, or where its place lies outside what the CRS covers.
        """
        t = self.transform
        if self.unit == "um":
            return Spacing(math.hypot(t.b, t.e), math.hypot(t.a, t.d), "um")
        if self.unit is None:
            return None
        return self._ground_spacing(size.height / 2, size.width / 2)

    def row_areas(self, size: Size) -> NDArray[np.float64] | None:
        """Area of one pixel of each row, (H,), in um2 for slides and m2 on the ellipsoid for rasters; None if unknown.

        Each row's value is the pixel area at the row's middle column: exact where the CRS is equal-area or the rows
        follow parallels (degrees, Mercator), and within the CRS's own distortion across one row elsewhere.
        """
        if self.unit is None:
            return None
        if self.unit == "um":
            return np.full(size.height, abs(self.transform.determinant))
        known = np.unique(np.linspace(0, size.height - 1, min(size.height, 257)).round())
        areas = [self._ground_area(row + 0.5, size.width / 2) for row in known]
        if any(area is None for area in areas):
            return None
        return np.interp(np.arange(size.height), known, np.array(areas, dtype=np.float64))

    def metric(self, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """(3, n): squared length of a pixel's step along x, the product of that step and the one along y, and the
        squared length of the latter, at rows y and columns x (n,), in um2 or, on the ellipsoid, m2.

        So a small step (dx, dy) has the length sqrt(E dx2 + 2 F dx dy + G dy2), and a pixel the area sqrt(E G - F2).
        NaN beyond what the CRS covers; None where the georeference says nothing about sizes.
        """
        t = self.transform
        flat = np.array([t.a * t.a + t.d * t.d, t.a * t.b + t.d * t.e, t.b * t.b + t.e * t.e])[:, None]
        if self.unit is None:
            return None
        if self.unit == "um":
            return flat.repeat(len(x), 1)
        tools = self._to_lonlat
        if tools is None:
            factor: float = pyproj.CRS.from_user_input(self.crs).axis_info[0].unit_conversion_factor
            return flat.repeat(len(x), 1) * factor**2 if factor > 0 else None
        # Steps of 100 m and more keep the geodesics well above rounding error for very small pixels.
        middle = self._ground_spacing(float(np.median(y)), float(np.median(x)))
        n = 1.0 if middle is None else max(1.0, 100 / min(middle.y, middle.x))
        half = np.array([[n, 0.0], [-n, 0.0], [0.0, n], [0.0, -n], [n, n], [-n, -n]]) / 2
        column, row = x + half[:, :1], y + half[:, 1:]
        lon, lat = tools[0].transform(t.a * column + t.b * row + t.c, t.d * column + t.e * row + t.f)
        lost = ~np.isfinite([lon, lat]).all(axis=(0, 1)) | (np.abs(lat) > 90).any(axis=0)
        lon[:, lost], lat[:, lost] = 0, 0
        _, _, length = tools[1].inv(lon[0::2], lat[0::2], lon[1::2], lat[1::2])
        e, g, both = (np.asarray(length) / n) ** 2
        return np.where(lost, np.nan, np.stack([e, (both - e - g) / 2, g]))

    @cached_property
    def _to_lonlat(self) -> tuple[pyproj.Transformer, pyproj.Geod] | None:
        crs = pyproj.CRS.from_user_input(self.crs)
        geod = crs.get_geod()
        if geod is None or not (crs.is_projected or crs.is_geographic):
            return None
        geographic = crs.geodetic_crs if crs.is_projected else crs
        assert geographic is not None, "a projected CRS lies over a geographic one"
        if not math.isclose(geographic.axis_info[0].unit_conversion_factor, math.pi / 180):
            # French maps count in grads; geodesics are asked for in degrees.
            geographic = GeographicCRS(datum=geographic.datum)
        return pyproj.Transformer.from_crs(crs, geographic, always_xy=True), geod

    def _ground_spacing(self, y: float, x: float) -> Spacing | None:
        tools = self._to_lonlat
        if tools is None:
            return self._flat_spacing()
        to_lonlat, geod = tools
        corners = [self.world(y, x - 0.5), self.world(y, x + 0.5), self.world(y - 0.5, x), self.world(y + 0.5, x)]
        lon, lat = to_lonlat.transform([c[0] for c in corners], [c[1] for c in corners])
        if not np.isfinite([lon, lat]).all() or max(map(abs, lat)) > 90:
            return None
        _, _, sides = geod.inv([lon[0], lon[2]], [lat[0], lat[2]], [lon[1], lon[3]], [lat[1], lat[3]])
        return Spacing(float(sides[1]), float(sides[0]), "m") if min(sides) > 0 else None

    def _flat_spacing(self) -> Spacing | None:
        """For a local or engineering CRS: its own linear unit, no ellipsoid."""
        factor = pyproj.CRS.from_user_input(self.crs).axis_info[0].unit_conversion_factor
        t = self.transform
        y, x = math.hypot(t.b, t.e) * factor, math.hypot(t.a, t.d) * factor
        return Spacing(y, x, "m") if factor > 0 else None

    def _ground_area(self, y: float, x: float) -> float | None:
        tools = self._to_lonlat
        if tools is None:
            spacing = self._flat_spacing()
            return None if spacing is None else spacing.y * spacing.x
        to_lonlat, geod = tools
        spacing = self._ground_spacing(y, x)
        if spacing is None:
            return None
        # A cell of at least 10 m a side keeps the geodesic polygon well above rounding error for very small pixels.
        n = max(1, round(10 / min(spacing.y, spacing.x)))
        ring = [(y - n / 2, x - n / 2), (y - n / 2, x + n / 2), (y + n / 2, x + n / 2), (y + n / 2, x - n / 2)]
        world = [self.world(*corner) for corner in ring]
        lon, lat = to_lonlat.transform([w[0] for w in world], [w[1] for w in world])
        if not np.isfinite([lon, lat]).all() or max(map(abs, lat)) > 90:
            return None
        area, _ = geod.polygon_area_perimeter(lon, lat)
        return abs(area) / n**2


def plausible(y: float, x: float) -> tuple[Spacing | None, str | None]:
    """A slide's pixel of y x x micrometres and None; or None, and why nobody can have measured that."""
    low, high = PLAUSIBLE_UM
    if all(low <= side <= high for side in (y, x)):
        return Spacing(y, x, "um"), None
    return None, f"says that a pixel is {y:.4g} x {x:.4g} um, which no slide is: taken as unknown"


def box_corners(georef: Georef, box: Box) -> list[tuple[float, float]]:
    """World (x, y) of a rectangle's corners: top-left, top-right, bottom-right, bottom-left."""
    return [
        georef.world(box.y, box.x),
        georef.world(box.y, box.right),
        georef.world(box.bottom, box.right),
        georef.world(box.bottom, box.x),
    ]
