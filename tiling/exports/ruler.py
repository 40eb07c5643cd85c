"""What areas and lengths on a label image's pixel grid measure: on the glass, or on the ellipsoid whatever the CRS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from tiling.exports.outlines import Ring
from tiling.geometry import Box, Size
from tiling.georef import Georef

AreaUnit = Literal["um2", "m2"]
Corners = NDArray[np.int32]
_ROWS, _COLUMNS = 257, 33
"""Places, at most, at which pixels are measured; a smooth curve goes through them."""
_ALIKE: Final = 1e-10
"""What two pixels' areas may differ by, relatively, and count as the same."""


@dataclass(frozen=True)
class Ruler:
    """Measures polygons on the pixel grid of an image.

    The area of the pixel at row y and column x is a sum of products rows[k][y] * columns[k][x]: one product for
    micrometres, degrees and Mercator, two or three for other projections. So a polygon's area is exactly that of its
    pixels, from its corners alone (Green's theorem), and what the polygons of a mask measure adds up to all of it.
    """

    unit: AreaUnit
    rows: tuple[NDArray[np.float64], ...]
    """Each (H + 1,): sums over the rows above."""
    columns: tuple[NDArray[np.float64], ...]
    """Each (W + 1,): sums over the columns to the left."""
    metric: NDArray[np.float64]
    """(3, r, c): `Georef.metric` at r rows and c columns, evenly spaced."""
    size: Size

    @classmethod
    def of(cls, georef: Georef, size: Size) -> Ruler | None:
        """None where nothing is known about the size of a pixel, or of some of them."""
        flat = georef.unit == "um"
        y, x = _places(size.height, 1 if flat else _ROWS), _places(size.width, 1 if flat else _COLUMNS)
        grid = np.meshgrid(y, x, indexing="ij")
        metric = georef.metric(grid[0].ravel(), grid[1].ravel())
        if metric is None or not np.isfinite(metric).all():
            return None
        metric = metric.reshape(3, len(y), len(x))
        areas = np.sqrt(np.maximum(metric[0] * metric[2] - metric[1] ** 2, 0))
        left, strength, right = np.linalg.svd(areas)
        known = [k for k, s in enumerate(strength) if s > _ALIKE * strength[0]][:4]
        return cls(
            unit="um2" if georef.unit == "um" else "m2",
            rows=tuple(_sums(left[:, k] * strength[k], y, size.height) for k in known),
            columns=tuple(_sums(right[k], x, size.width) for k in known),
            metric=metric,
            size=size,
        )

    @property
    def pixel(self) -> float | None:
        """The area of a pixel, where all have the same."""
        return float(self.rows[0][1] * self.columns[0][1]) if self.metric.shape[1:] == (1, 1) else None

    def area_of_pixels(self, pixels: NDArray[np.bool_], box: Box) -> float:
        """Of those that are True in `box`, (h, w)."""
        total = 0.0
        for rows, columns in zip(self.rows, self.columns, strict=True):
            across, down = (
                np.diff(c[a : b + 1]) for c, a, b in ((columns, box.x, box.right), (rows, box.y, box.bottom))
            )
            if np.ptp(across) == 0:
                in_rows = np.array([np.count_nonzero(row) for row in pixels]) * across[0]  # an axis argument is slower
            else:
                in_rows = pixels @ across
            total += float(down @ in_rows)
        return total

    def areas_and_lengths(self, start: Corners, end: Corners) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What edges, (n, 2) each, add to the area on their left and to the length of a ring."""
        area = np.zeros(len(start))
        for rows, columns in zip(self.rows, self.columns, strict=True):
            # The integral of `across` with respect to `up`: both are straight along an edge, or nearly.
            across = columns[start[:, 0]] + columns[end[:, 0]]
            area += across * (rows[start[:, 1]] - rows[end[:, 1]]) / 2
        dx, dy = (end - start).T.astype(np.float64)
        x, y = ((start + end) / 2).T
        e, f, g = self._metric_at(y, x)
        return area, np.sqrt(np.maximum(e * dx * dx + 2 * f * dx * dy + g * dy * dy, 0))

    def _metric_at(self, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
        """(3, n) between the places where it is known."""
        _, rows, columns = self.metric.shape
        if rows == columns == 1:
            return self.metric[:, 0]
        i, down = _between(y, self.size.height, rows)
        j, right = _between(x, self.size.width, columns)
        above, below = (
            self.metric[:, k, j] * (1 - right) + self.metric[:, k, np.minimum(j + 1, columns - 1)] * right
            for k in (i, np.minimum(i + 1, rows - 1))
        )
        return np.asarray(above * (1 - down) + below * down)


def measured(rings: Sequence[Ring], ruler: Ruler | None) -> NDArray[np.float64]:
    """(rings, 5): area in pixels, its moments about x = 0 and y = 0, area and length by the ruler (0 without one).

    Areas and moments are positive for shells and negative for holes.
    """
    counts = np.array([len(ring) for ring in rings])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    start = np.concatenate(rings)
    following = np.arange(1, len(start) + 1)
    following[starts + counts - 1] = starts
    end = start[following]
    origin = start[starts].astype(np.float64)  # near the ring: no digits are lost far from the image's corner
    (x0, y0), (x1, y1) = (start - origin.repeat(counts, 0)).T, (end - origin.repeat(counts, 0)).T
    cross = (x1 * y0 - x0 * y1) / 2
    area, length = ruler.areas_and_lengths(start, end) if ruler else np.zeros((2, len(start)))
    columns = [cross, cross * (x0 + x1) / 3, cross * (y0 + y1) / 3, area, length]
    sums = np.add.reduceat(np.stack(columns, 1), starts)
    sums[:, 1:3] += origin * sums[:, :1]
    return np.asarray(sums)


def _between(at: NDArray[np.float64], length: int, places: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The place before each position on an axis, and how far it is on the way to the next one."""
    step = (at - 0.5).clip(0) * (places - 1) / max(length - 1, 1)
    before = np.minimum(step.astype(np.intp), places - 1)
    return before, (step - before).clip(0, 1)


def _places(length: int, most: int) -> NDArray[np.float64]:
    """Middles of pixels spread over an axis."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round()) + 0.5


def _sums(values: NDArray[np.float64], at: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """(length + 1,): sums of a smooth curve through `values`, over the pixels before each corner."""
    from scipy.interpolate import CubicSpline  # twenty megabytes, which a viewer's server does without

    pixels = np.arange(length) + 0.5
    smooth = CubicSpline(at, values)(pixels) if len(at) > 3 else np.interp(pixels, at, values)
    return np.concatenate([[0.0], np.cumsum(smooth)])
