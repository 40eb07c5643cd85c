"""Whether the borders of windows show in a label image: how often neighbouring pixels differ there, and elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tiling.grid import Axis, Grid, blocks
from tiling.labels import NODATA, Labels

_PIECE: Final = 2048


@dataclass(frozen=True, slots=True)
class Seams:
    """Shares of pairs of neighbouring pixels, both of them data, that differ in class."""

    across: float
    """Of the pairs that a window's border lies between."""
    elsewhere: float
    """Of all others. Where no seam shows, both are alike."""


def seams(labels: Labels, grid: Grid) -> Seams | None:
    """Counted over the whole image, piece by piece; None where no window's border lies between two pixels of data.

    Pairs of which the halves lie in two pieces are not counted.
    """
    total, at_borders = np.zeros(2, np.int64), np.zeros(2, np.int64)
    for box in blocks(labels.size, _PIECE):
        values = labels.read(box)
        if (values == NODATA).all():
            continue
        rows, columns = borders(grid.rows, box.y, box.bottom), borders(grid.columns, box.x, box.right)
        for pixels, inside in ((values, rows), (values.T, columns)):
            here, before = pixels[1:], pixels[:-1]
            known = (here != NODATA) & (before != NODATA)
            differ = known & (here != before)
            total += np.count_nonzero(differ), np.count_nonzero(known)
            at_borders += np.count_nonzero(differ[inside - 1]), np.count_nonzero(known[inside - 1])
    elsewhere = total - at_borders
    if not at_borders[1] or not elsewhere[1]:
        return None
    return Seams(float(at_borders[0] / at_borders[1]), float(elsewhere[0] / elsewhere[1]))


def borders(axis: Axis, begin: int, end: int) -> NDArray[np.intp]:
    """Where windows start or end between pixels begin..end-1 of an axis, counted from begin: border k lies before
    pixel k. None lies at the image's own edges.
    """
    found = set()
    for index in axis.touching(begin, end):
        start = axis.start(index)
        found |= {start, start + axis.window}
    inside = sorted(at - begin for at in found if begin < at < end)
    return np.array(inside, dtype=np.intp)
