"""A mask with its corrections: tiles to look at, files to keep, and shapes to train on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray

from pipelines.display.masks import Count, MaskTiles, count, tile_box
from pipelines.live.corrections import STROKES, Corrections, Stroke
from tiling import NODATA, Box
from tiling.canvas import Canvas
from tiling.exports import EXPORTS
from tiling.exports.files import printable, replacing
from tiling.labels import Labels

SHAPES: Final = "corrections.geojson"
EXPORTED: Final = ("mask", "areas", "regions")
BLOCK: Final = 2048


class CorrectedTiles:
    """A mask's tiles with the strokes on them; safe to use from several threads."""

    def __init__(self, mask: MaskTiles, corrections: Corrections) -> None:
        """Raises RequestError where the mask has other classes or pixels by now than those that were painted."""
        corrections.check(mask.labels)
        self.mask, self.corrections = mask, corrections
        self.labels, self.sizes, self.place = mask.labels, mask.sizes, mask.place

    def tile(self, level: int, row: int, column: int) -> NDArray[np.uint8]:
        """(h, w) class values. Raises IndexError where there is no such tile."""
        values = self.mask.tile(level, row, column)
        return self.corrections.burn(values, tile_box(self.sizes, level, row, column), level)

    def thin_tile(self, level: int, row: int, column: int) -> tuple[NDArray[np.uint8], bool]:
        """((h, w), whether final): `tile` without loss of what is thin, strokes among it."""
        values, final = self.mask.thin_tile(level, row, column)
        return self.corrections.burn(values, tile_box(self.sizes, level, row, column), level, thin=True), final

    def read(self, box: Box, level: int) -> NDArray[np.uint8]:
        """(h, w) class values of a box."""
        return self.corrections.burn(self.mask.read(box, level), box, level)

    def count(self, corners: Sequence[tuple[float, float]]) -> Count:
        """What a polygon of level-0 (y, x) corners holds."""
        return count(self, corners)

    def stroke(self, value: int | None, radius: float, points: Sequence[tuple[float, float]]) -> Stroke:
        """One that is given in level-0 pixels of the image."""
        return Stroke(value, radius / self.place.step_x, tuple(self.place.of_labels(points)))


def write_corrected(corrections: Corrections) -> list[Path]:
    """The corrected mask with its files, and the shapes, in the corrections' own folder; block by block.

    Raises ImageError where the mask cannot be read, RequestError where it is another one by now. Each file appears
    whole, or not at all.
    """
    base, folder = Labels.open(corrections.mask / "labels.zarr"), corrections.folder
    corrections.check(base)
    journal = (folder / STROKES).read_bytes()
    fingerprint = hashlib.sha256(base.fingerprint.encode() + journal).hexdigest()
    canvas = Canvas.like(folder / "labels.zarr.partial", base, block=BLOCK, chunk=512, fingerprint=fingerprint)
    with closing(canvas):
        for box in canvas.blocks:
            canvas.write(box, np.ascontiguousarray(corrections.burn(base.read(box), box)))
        labels = canvas.publish(folder / "labels.zarr")
    shapes = write_shapes(corrections.strokes, base, folder / SHAPES)
    return [shapes, *(path for name in EXPORTED for path in EXPORTS[name](labels, folder, None, {}))]


def write_shapes(strokes: Sequence[Stroke], labels: Labels, path: Path) -> Path:
    """What was painted, as GeoJSON that `veca train` takes for truth and QuPath for annotations.

    Pixels of the slide, or longitude and latitude where the image has a CRS. Shapes do not overlap; what was taken
    back, or is no data, is in none of them.
    """
    to_file = _to_lonlat(labels) if labels.georef.unit == "crs" else _by_affine(labels.to_image())
    classes = {c.value: c for c in labels.classes}
    features = []
    for value, shape in disjoint(strokes):
        if value == NODATA:
            continue
        name, color = printable(classes[value].name), list(classes[value].color)
        properties = {
            "objectType": "annotation", "classification": {"name": name, "color": color}, "class": name, "value": value,
        }  # fmt: skip
        for part in shapely.get_parts(shapely.transform(shape, to_file)):
            geometry = json.loads(shapely.to_geojson(part))
            features.append({"type": "Feature", "properties": properties, "geometry": geometry})
    with replacing(path) as partial:
        text = json.dumps({"type": "FeatureCollection", "features": features})
        partial.write_text(text, encoding="ascii")
    return path


def disjoint(strokes: Sequence[Stroke]) -> list[tuple[int, Any]]:
    """(class value, geometry) of what is seen of each class, values ascending: a later stroke covers earlier ones."""
    shapes = np.array([stroke.shape for stroke in strokes], dtype=object)
    tree = shapely.STRtree(shapes)
    left: dict[int, list[Any]] = {}
    for i, stroke in enumerate(strokes):
        if stroke.value is None:
            continue
        over = [shapes[j] for j in tree.query(stroke.shape) if j > i]
        rest = shapely.difference(stroke.shape, shapely.union_all(over)) if over else stroke.shape
        left.setdefault(stroke.value, []).append(rest)
    unions = {value: shapely.union_all(parts) for value, parts in sorted(left.items())}
    return [(value, shape) for value, shape in unions.items() if not shape.is_empty]


def _by_affine(place: Affine) -> Any:
    return lambda at: np.round(np.stack(place @ tuple(at.T), axis=1), 3)


def _to_lonlat(labels: Labels) -> Any:
    change = pyproj.Transformer.from_crs(labels.georef.crs, "EPSG:4326", always_xy=True)
    place = labels.georef.transform

    def move(at: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.round(np.stack(change.transform(*(place @ tuple(at.T))), axis=1), 10)

    return move
