"""How much of each class there is: pixels, area on the glass or on the ground, and share of the valid area."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tiling.exports.files import replacing
from tiling.exports.ruler import AreaUnit, Ruler
from tiling.grid import blocks
from tiling.labels import NODATA, Labels
from tiling.view import View

_LARGER: Final[Mapping[AreaUnit, tuple[str, float]]] = {"um2": ("mm2", 1e-6), "m2": ("ha", 1e-4)}
"""The larger unit that people read, and its factor."""
_PIECE: Final = 2048
"""Side of the pieces that are counted at once."""


@dataclass(frozen=True, slots=True)
class ClassArea:
    """How much of one class an image holds."""

    name: str
    value: int
    pixels: int
    area: float | None
    """In `unit`; None where nothing is known about the size of a pixel."""
    unit: AreaUnit | None
    """Square micrometres for slides, square metres on the ellipsoid for rasters."""
    share: float | None
    """Of the valid area (no data is left out), 0..1; they sum to 1. None where nothing is valid."""


def areas(labels: Labels) -> list[ClassArea]:
    """One entry a class, in the classes' order, absent ones too. Reads level 0 once, piece by piece.

    Where pixels differ in area (degrees, Mercator, large scenes), each is weighed with its own.
    """
    ruler = Ruler.of(labels.georef, labels.size)
    pixels, weighed = _count(labels, ruler)
    values = [c.value for c in labels.classes]
    total = float(weighed[values].sum())
    return [
        ClassArea(
            name=c.name,
            value=c.value,
            pixels=int(pixels[c.value]),
            area=float(weighed[c.value]) if ruler else None,
            unit=ruler.unit if ruler else None,
            share=float(weighed[c.value]) / total if total else None,
        )
        for c in labels.classes
    ]


def write_areas(labels: Labels, folder: Path, _image: View | None, _tags: Mapping[str, str]) -> list[Path]:
    """Writes areas.csv: a row a class, then 'total' (all that is valid) and 'no data' (pixels only)."""
    rows = areas(labels)
    unit = rows[0].unit if rows else None
    valid = sum(row.pixels for row in rows)
    area = None if unit is None else sum(row.area or 0.0 for row in rows)
    with replacing(folder / "areas.csv") as path, path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", "value", "pixels", *([unit, _LARGER[unit][0]] if unit else []), "share"])
        for row in rows:
            writer.writerow([row.name, row.value, row.pixels, *_cells(row.area, unit), _share(row.share)])
        writer.writerow(["total", "", valid, *_cells(area, unit), _share(1.0 if valid else None)])
        writer.writerow(["no data", NODATA, labels.size.pixels - valid, *([""] * (2 if unit else 0)), ""])
    return [folder / "areas.csv"]


def _count(labels: Labels, ruler: Ruler | None) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(256,) pixels and (256,) area of each value."""
    pixels: NDArray[np.int64] = np.zeros(256, np.int64)
    weighed: NDArray[np.float64] = np.zeros(256)
    one = 1.0 if ruler is None else ruler.pixel
    for box in blocks(labels.size, _PIECE):
        values = labels.read(box)
        histogram = np.array(Image.fromarray(values).histogram())
        pixels += histogram
        for value in np.flatnonzero(histogram) if one is None else []:
            assert ruler is not None
            weighed[value] += ruler.area_of_pixels(values == value, box)
    return pixels, weighed if one is None else np.asarray(pixels * one, np.float64)


def _cells(area: float | None, unit: AreaUnit | None) -> list[str]:
    """An area in its unit and in the larger one, with the digits that a single pixel needs."""
    return [] if unit is None or area is None else [f"{area:.4f}", f"{area * _LARGER[unit][1]:.9f}"]


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.9f}"
