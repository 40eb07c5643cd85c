"""What is known of a scene's pixels: a mask file, or shapes that are drawn when a box of pixels is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import pyogrio
import pyogrio.raw
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj import CRS, Transformer
from pyproj.enums import TransformDirection
from pyproj.exceptions import CRSError
from rasterio.features import rasterize

from pipelines.errors import RequestError
from tiling import Box, Source, View

UNKNOWN: Final = 255
"""The class value of pixels of which nothing is known."""
IGNORED: Final = "*"
"""At the end of a class's name, as QuPath has it: what is in such a shape, like 'Ignore*', is not to be counted."""
VECTOR_ENDINGS: Final = (".geojson", ".json", ".gpkg", ".shp", ".fgb")


class Truth(Protocol):
    """Class values of pixels; 255 where nothing is known."""

    @property
    def path(self) -> str:
        """Where it comes from."""
        ...

    def values(self, box: Box) -> NDArray[np.uint8]:
        """(H, W) class values of a box of the scene's view."""
        ...


@dataclass(frozen=True, slots=True)
class MaskTruth:
    """A mask file of the image's own size; where the view has other pixels, the mask's nearest pixel counts."""

    mask: Source
    view: View

    @property
    def path(self) -> str:
        return self.mask.path

    def values(self, box: Box) -> NDArray[Any]:
        """(H, W) values of a box of the view."""
        full, grid = self.mask.levels[0].size, self.view.size
        if full == grid:
            return np.ascontiguousarray(self.mask.read(box)[..., 0])
        rows = _nearest(box.y, box.bottom, grid.height, full.height)
        columns = _nearest(box.x, box.right, grid.width, full.width)
        region = Box.between(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
        values: NDArray[Any] = self.mask.read(region)[..., 0][np.ix_(rows - region.y, columns - region.x)]
        return values


@dataclass(frozen=True, slots=True)
class ShapeTruth:
    """Shapes in the view's pixels as (x, y); a later one covers those before it."""

    path: str
    shapes: NDArray[np.object_]
    classes: NDArray[np.uint8]
    """The class value of each shape."""
    elsewhere: int
    """The value of pixels in no shape."""
    tree: shapely.STRtree = field(init=False, repr=False, compare=False)
    """Finds the shapes near a box."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tree", shapely.STRtree(self.shapes))

    def values(self, box: Box) -> NDArray[np.uint8]:
        """(H, W) class values of a box: a pixel belongs to the shape that its centre lies in."""
        near = np.sort(self.tree.query(shapely.box(box.x, box.y, box.right, box.bottom)))
        values = np.full((box.height, box.width), self.elsewhere, dtype=np.uint8)
        if len(near):
            rasterize(
                zip(self.shapes[near], self.classes[near].tolist(), strict=True),
                out=values,
                transform=Affine.translation(box.x, box.y),
            )
        return values


def read_shapes(
    path: Path,
    view: View,
    values: Mapping[str, int],
    attribute: str | None,
    elsewhere: int,
    *,
    shared: bool = False,
    layer: str | None = None,
) -> ShapeTruth:
    """The polygons of a vector file that touch a view, as its classes.

    Where the image has a CRS, they are brought into it from the file's; elsewhere they are level-0 pixels, as QuPath
    writes them. Of a file with several layers, `layer` is drawn. The class is what `attribute` says, or QuPath's
    classification; shapes without one are left out, and of what lies in one like 'Ignore*' nothing is known.
    Raises RequestError for a file that cannot be read, a class that nobody named, points or lines that have one, or,
    unless the file is `shared` with other images, for shapes that all lie beside the image.
    """
    georef = view.georef
    if georef.unit == "crs":
        shapes, names, empty = _from_layer(path, layer, attribute or "class", view)
        to_pixels = ~georef.transform
    else:
        if layer is not None:
            raise RequestError(f"{path} has no layers, as QuPath writes it; leave data.layer out")
        shapes, names = _from_qupath(path, attribute)
        empty = not len(shapes)
        to_pixels = Affine.scale(1 / view.scale[1], 1 / view.scale[0])
    known = np.array([name is not None for name in names], dtype=np.bool_)
    values = {str(name): UNKNOWN for name in names if str(name).endswith(IGNORED)} | dict(values)
    foreign = sorted({str(name) for name in names if name is not None and str(name) not in values})
    if foreign:
        raise RequestError(f"{path} holds the classes {foreign[:10]}, but the recipe names {list(values)}")
    placed = shapely.transform(shapes, lambda at: np.stack(to_pixels @ tuple(at.T), axis=1))
    # What covers itself is covered, and what has no area leaves nothing behind: the other method makes holes and lines.
    placed = shapely.make_valid(placed, method="structure", keep_collapsed=False)
    near = shapely.box(0, 0, view.size.width, view.size.height).intersects(placed)
    if thin := int((near & known & (shapely.get_dimensions(placed) < 2)).sum()):
        raise RequestError(
            f"{path} holds {thin} points or lines with a class, and these cover no pixels; make areas of them, or take "
            "their class away"
        )
    if not (near.any() or empty or shared):
        raise RequestError(f"no shape of {path} touches {view.source.path}; are they of another image, or another CRS?")
    codes = [values[str(name)] for name, chosen in zip(names, near & known, strict=True) if chosen]
    return ShapeTruth(str(path), placed[near & known], np.array(codes, dtype=np.uint8), elsewhere)


def _from_qupath(path: Path, attribute: str | None) -> tuple[NDArray[np.object_], list[Any]]:
    """Geometries and class names of a GeoJSON file, coordinates as they stand."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        features = content["features"] if isinstance(content, dict) else content
        features = [feature for feature in features if feature["geometry"] is not None]
        shapes = shapely.from_geojson([json.dumps(feature["geometry"]) for feature in features])
        names = [_class_name(feature.get("properties") or {}, attribute) for feature in features]
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, shapely.errors.GEOSException) as error:
        raise RequestError(f"{path} is no GeoJSON of shapes: expected features with a geometry each") from error
    return np.asarray(shapes, dtype=object), names


def _class_name(properties: Mapping[str, Any], attribute: str | None) -> Any:
    if attribute:
        return properties.get(attribute)
    classification = properties.get("classification")
    if not isinstance(classification, dict):
        return classification
    # QuPath writes a class within a class, like 'Tumor: Positive', as the names of both.
    return classification.get("name") or ": ".join(classification.get("names") or ()) or None


def _from_layer(
    path: Path, layer: str | None, attribute: str, view: View
) -> tuple[NDArray[np.object_], list[Any], bool]:
    """Geometries around a view and in its CRS, their class names, and whether the vector file's layer is empty."""
    try:
        layer = _layer_of(path, layer)
        info = pyogrio.read_info(path, layer=layer)
        change = _change(path, info, attribute, str(view.georef.crs))
        around = _surroundings(view, change)
        _, _, encoded, fields = pyogrio.raw.read(path, layer=layer, columns=[attribute], bbox=around)
        shapes = shapely.from_wkb(encoded)
    except (DataSourceError, DataLayerError, ValueError, shapely.errors.GEOSException) as error:
        raise RequestError(f"{path} cannot be read as a vector layer") from error
    moved = shapely.transform(shapes, lambda at: np.stack(change.transform(at[:, 0], at[:, 1]), axis=1))
    # Far from where a projection holds, coordinates become infinite: such a shape is nowhere near the view.
    there = np.isfinite(shapely.bounds(moved)).all(axis=1)
    return np.asarray(moved, dtype=object)[there], list(fields[0][there]), not info["features"]


def _layer_of(path: Path, wanted: str | None) -> str:
    """The layer that is `wanted`, or the only one; raises RequestError where there is no such layer, or a choice."""
    found = pyogrio.list_layers(path).tolist()
    # Tables without shapes may lie beside, like the styles that QGIS keeps; an empty layer may say nothing of its own.
    layers: list[str] = [name for name, geometry in found if geometry is not None] or [name for name, _ in found]
    if wanted is None and len(layers) == 1:
        return layers[0]
    if wanted is None or wanted not in layers:
        lacking = f"no layer {wanted!r}" if wanted else f"{len(layers)} layers of shapes"
        raise RequestError(f"{path} has {lacking}; name one as data.layer: {', '.join(layers) or 'there is none'}")
    return wanted


def _change(path: Path, info: Mapping[str, Any], attribute: str, crs: str) -> Transformer:
    """From a layer's CRS to `crs`; raises RequestError for a layer that does not say its CRS, or its classes."""
    if attribute not in info["fields"]:
        raise RequestError(f"{path} has no attribute {attribute!r}; name the one that says the class as data.attribute")
    if not info["crs"]:
        raise RequestError(f"{path} does not say its CRS, and its image has one; write the layer with its CRS")
    try:
        return Transformer.from_crs(CRS.from_user_input(info["crs"]), CRS.from_user_input(crs), always_xy=True)
    except CRSError as error:
        raise RequestError(f"{path} has a CRS that PROJ cannot bring into that of its image") from error


def _surroundings(view: View, change: Transformer) -> tuple[float, float, float, float] | None:
    """Left, bottom, right and top of a view, and a tenth more, in the CRS that `change` starts from.

    None where that CRS does not cover the view: where what goes there does not come back to within a pixel.
    """
    x, y = np.meshgrid(np.linspace(0, view.size.width, 21), np.linspace(0, view.size.height, 21))
    transform = view.georef.transform
    here = np.stack([transform.a * x + transform.b * y, transform.d * x + transform.e * y]).reshape(2, -1)
    here += np.array([[transform.c], [transform.f]])
    there = np.array(change.transform(here[0], here[1], direction=TransformDirection.INVERSE))
    back = np.array(change.transform(there[0], there[1]))
    if not np.allclose(back, here, rtol=0, atol=abs(transform.determinant) ** 0.5):
        return None
    low, high = there.min(axis=1), there.max(axis=1)
    margin = (high - low) / 10
    return *(low - margin).tolist(), *(high + margin).tolist()


def _nearest(start: int, stop: int, length: int, full: int) -> NDArray[np.intp]:
    """The pixel, of `full`, in whose place the centre of each of start..stop-1, of `length`, lies."""
    at: NDArray[np.intp] = ((np.arange(start, stop) + 0.5) * (full / length)).astype(np.intp)
    return np.minimum(at, full - 1)
