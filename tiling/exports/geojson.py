"""Regions as QuPath imports them: GeoJSON in pixels of the slide, with class and colour. Written one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import numpy as np
from affine import Affine

from tiling.exports.files import printable
from tiling.exports.outlines import Ring, placed
from tiling.exports.regions import MeasuredRegion, RegionWishes
from tiling.labels import Labels

_DIGITS = 3
"""Of a pixel of the slide, where the mask's pixels are not a whole number of them."""


class GeoJson:
    """A FeatureCollection that is being written; what QuPath reads of it is documented with its `PathObject`s."""

    def __init__(self, path: Path, labels: Labels, tags: Mapping[str, str], wishes: RegionWishes) -> None:
        self._place = labels.to_image(from_bounds=wishes.origin == "bounds")
        self._objects = wishes.objects
        self._first = True
        self._names = {c.value: printable(c.name) for c in labels.classes}
        self._file: TextIO = path.open("w", encoding="ascii", newline="\n")
        about = {key: printable(text) for key, text in tags.items()}
        head = {"type": "FeatureCollection", "name": printable(labels.name), "veca": about}
        self._file.write(json.dumps(head)[:-1] + ', "features": [')

    def add(self, region: MeasuredRegion) -> None:
        """Writes a feature, ring by ring."""
        self._file.write("\n" if self._first else ",\n")
        self._first = False
        head = {"type": "Feature", "id": str(region.id), "properties": self._properties(region)}
        self._file.write(json.dumps(head)[:-1] + ', "geometry": {"type": "Polygon", "coordinates": [')
        for index, ring in enumerate(region.rings):
            self._file.write((", " if index else "") + _text(ring, self._place))
        self._file.write("]}}")

    def close(self, *, complete: bool) -> None:
        """Ends the collection. Raises OSError where the disk is full."""
        with self._file:
            if complete:
                self._file.write("\n]}\n")

    def _properties(self, region: MeasuredRegion) -> dict[str, object]:
        label = region.label
        return {
            "objectType": self._objects,
            "classification": {"name": self._names[label.value], "color": list(label.color)},
            "value": label.value,
            "measurements": _measurements(region),
        }


def _measurements(region: MeasuredRegion) -> dict[str, float]:
    """As QuPath's own measurements are called, where it has them."""
    if region.area is None or region.perimeter is None:
        return {"Area px^2": region.pixels}
    unit = "µm" if region.unit == "um2" else "m"
    return {f"Area {unit}^2": round(region.area, 4), f"Perimeter {unit}": round(region.perimeter, 4)}


def _text(ring: Ring, place: Affine) -> str:
    """[[x, y], ...] closed, in pixels of the image."""
    closed = np.concatenate([ring, ring[:1]])
    if place == Affine.identity():
        return str(closed.tolist())
    moved = np.round(placed(closed, place), _DIGITS)
    return str((moved.astype(np.int64) if (moved == np.trunc(moved)).all() else moved).tolist())
