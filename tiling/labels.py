"""A finished label image on disk: OME-Zarr 0.5 labels with classes, colours and a place in the world."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pyproj
import zarr
from affine import Affine
from numpy.typing import NDArray

from tiling.errors import ImageError
from tiling.geometry import Box, Size
from tiling.georef import Georef
from tiling.source import Kind

NODATA: Final = 255
"""Label of a pixel that is no data; kept apart from every class."""
UNFINISHED: Final = "veca-unfinished"
"""Under this attribute lies the description of a label image that is still being written."""
_AXIS_UNITS: Final = {"metre": "meter", "kilometre": "kilometer", "foot": "foot"}
"""Names of PROJ's units in OME-Zarr, which has none for degrees."""


@dataclass(frozen=True, slots=True)
class LabelClass:
    """What one value of a label image means."""

    value: int
    """0..254, as written in the mask."""
    name: str
    color: tuple[int, int, int]
    """Red, green, blue, 0..255."""

    def __post_init__(self) -> None:
        if not 0 <= self.value < NODATA:
            raise ValueError(f"class {self.name!r} has value {self.value}; values are 0..254 (255 is no data)")
        if not all(0 <= c <= 255 for c in self.color):
            raise ValueError(f"class {self.name!r} has colour {self.color}; write three numbers 0..255")


@dataclass(frozen=True, slots=True)
class LayerData:
    """An array beside the labels, on their grid: values 0..1 as bytes, see `tiling.layers`."""

    channels: tuple[str, ...]
    about: Mapping[str, str]
    """What else a reader should know, by name."""
    levels: tuple[zarr.Array[Any], ...]
    """(channels, H, W) uint8, of the sizes of the labels' levels."""


@dataclass(frozen=True, slots=True)
class Labels:
    """A finished label image: one class value a pixel, 255 where there is no data."""

    path: Path
    """Its folder."""
    name: str
    """Of the image that it labels."""
    kind: Kind
    size: Size
    """Of level 0."""
    georef: Georef
    """Of level 0."""
    classes: tuple[LabelClass, ...]
    fingerprint: str
    """Names the run that made it: input, model, plan and options."""
    scale: tuple[float, float]
    """(y, x): how many pixels of the image one pixel of level 0 covers; (1, 1) where it was read as it is."""
    corner: tuple[float, float]
    """(y, x): where the first pixel begins, in pixels of what was read of the image; (0, 0) but for a part of it."""
    levels: tuple[zarr.Array[Any], ...]
    """(H, W) uint8, finest first; a pixel of level k covers 2**k x 2**k pixels of level 0."""
    layers: Mapping[str, LayerData]
    """What lies beside the labels, by name; none unless it was asked for."""

    @classmethod
    def open(cls, path: Path) -> Labels:
        """Reads the description, no pixels.

        Raises ImageError where `path` is not a finished label image of ours, or files of it are gone: Zarr would read
        what they held as no data.
        """
        if not path.is_dir():
            raise ImageError(f"{path}: there is no label image here; give the folder that a segmentation wrote")
        try:
            group = zarr.open_group(path, mode="r", zarr_format=3, use_consolidated=False)
            attributes = cast("dict[str, Any]", group.attrs.asdict())
            if UNFINISHED in attributes:
                raise ImageError(f"{path}: this label image is not finished; segment the image again to complete it")
            labels = _parse(path, group, attributes)
            _refuse_gone(path, attributes["veca"].get("files", {}))
            return labels
        except (FileNotFoundError, ValueError, KeyError, TypeError, IndexError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ImageError(f"{path}: not an OME-Zarr 0.5 label image written by VECA ({reason})") from error

    def read(self, box: Box, level: int = 0) -> NDArray[np.uint8]:
        """(h, w) labels of `box`, in pixels of `level`. Raises ImageError for a box that leaves the level."""
        if not 0 <= level < len(self.levels):
            raise ImageError(f"{self.path}: level {level} was asked for, but it has levels 0..{len(self.levels) - 1}")
        height, width = self.levels[level].shape
        if not Size(height, width).box.contains(box):
            raise ImageError(f"{self.path}: {box} leaves level {level}, which is {height} x {width} px")
        return cast("NDArray[np.uint8]", self.levels[level][box.slices])

    def to_image(self, *, from_bounds: bool = False) -> Affine:
        """From corners (x, y) of these pixels to those of the image at its own resolution.

        They are counted from the slide's own corner, as programs that show slides do; or, `from_bounds`, from the
        corner of what was read of it, where the slide declares bounds. A Zarr that states an offset has no corner but
        its own.
        """
        y, x = self.scale
        top, left = self.corner
        t = self.georef.transform
        bounded = self.kind == "slide" and self.georef.unit == "um" and not from_bounds
        # Without a unit, the world is the image's own pixels, unless a world file stretches or mirrors them.
        in_pixels = self.georef.unit is None and (t.a, t.e) == (x, y)
        offset = (t.c * x / t.a, t.f * y / t.e) if bounded or in_pixels else (left, top)
        return Affine(x, 0.0, round(offset[0], 6), 0.0, y, round(offset[1], 6))


def describe(
    *,
    sizes: Sequence[Size],
    classes: Sequence[LabelClass],
    georef: Georef,
    kind: Kind,
    name: str,
    fingerprint: str,
    scale: tuple[float, float] = (1.0, 1.0),
    corner: tuple[float, float] = (0.0, 0.0),
    layers: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Attributes, as JSON values, of a finished label image with levels of these sizes; `Labels.open` reads them."""
    if len({c.value for c in classes}) != len(classes):
        raise ValueError(f"two classes share a value: {[(c.value, c.name) for c in classes]}")
    colors = [{"label-value": c.value, "rgba": [*c.color, 255]} for c in classes]
    names = [{"label-value": c.value, "name": c.name} for c in classes]
    return {
        "ome": {
            "version": "0.5",
            "multiscales": [_multiscale(len(sizes), georef, name)],
            "image-label": {
                "colors": [*colors, {"label-value": NODATA, "rgba": [0, 0, 0, 0]}],
                "properties": [*names, {"label-value": NODATA, "name": "no data"}],
            },
        },
        "veca": {
            "name": name,
            "kind": kind,
            "transform": [float(number) for number in georef.transform[:6]],
            "unit": georef.unit,
            "crs": georef.crs,
            "scale": [float(step) for step in scale],
            "nodata": NODATA,
            "fingerprint": fingerprint,
            **({"corner": [float(place) for place in corner]} if any(corner) else {}),
            **({"layers": dict(layers)} if layers else {}),
        },
    }


def with_files(description: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The description of a finished label image at `path`, with the number of files that each of its arrays has."""
    ours = description["veca"]
    levels = [dataset["path"] for dataset in description["ome"]["multiscales"][0]["datasets"]]
    arrays = [*levels, *(f"{layer}/{level}" for layer in ours.get("layers", {}) for level in levels)]
    return {**description, "veca": {**ours, "files": {name: _count(path / name) for name in arrays}}}


def without_files(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What `with_files` was given."""
    ours = attributes.get("veca", {})
    return {**attributes, "veca": {key: value for key, value in ours.items() if key != "files"}}


def _count(array: Path) -> int:
    """Blocks without any data have no file."""
    return sum(path.is_file() for path in array.glob("c/**/[0-9]*"))


def _refuse_gone(path: Path, files: Mapping[str, int]) -> None:
    """Raises ImageError where an array has fewer files than when it was finished."""
    for name, wanted in files.items():
        found = _count(path / name)
        if found < wanted:
            raise ImageError(
                f"{path}: {wanted - found} of the {wanted} files of its level {name} are gone; copy it again, "
                "or segment the image again"
            )


def _multiscale(levels: int, georef: Georef, name: str) -> dict[str, Any]:
    """Axes and one dataset a level. OME-Zarr places pixel centres, so a coarse level starts half a coarse pixel in."""
    t = georef.transform
    y, x = math.hypot(t.b, t.e), math.hypot(t.a, t.d)
    unit = _axis_unit(georef)
    origin_y, origin_x = (t.f, t.c) if georef.unit == "um" else (0.0, 0.0)
    steps = [(str(level), 2.0**level) for level in range(levels)]
    return {
        "name": name,
        "axes": [{"name": axis, "type": "space"} | ({"unit": unit} if unit else {}) for axis in "yx"],
        "datasets": [
            {
                "path": path,
                "coordinateTransformations": [
                    {"type": "scale", "scale": [y * step, x * step]},
                    {
                        "type": "translation",
                        "translation": [origin_y + y * (step - 1) / 2, origin_x + x * (step - 1) / 2],
                    },
                ],
            }
            for path, step in steps
        ],
        "type": "mode",
    }


def _axis_unit(georef: Georef) -> str | None:
    if georef.unit == "um":
        return "micrometer"
    return _AXIS_UNITS.get(pyproj.CRS.from_user_input(georef.crs).axis_info[0].unit_name) if georef.crs else None


def _parse(path: Path, group: zarr.Group, attributes: dict[str, Any]) -> Labels:
    """Raises KeyError, TypeError, ValueError or IndexError where something is missing or odd."""
    ours, ome = attributes["veca"], attributes["ome"]
    levels = tuple(_level(group, dataset["path"]) for dataset in ome["multiscales"][0]["datasets"])
    names = {row["label-value"]: row["name"] for row in ome["image-label"]["properties"]}
    colors = {row["label-value"]: tuple(row["rgba"][:3]) for row in ome["image-label"]["colors"]}
    return Labels(
        path=path,
        name=ours["name"],
        kind=ours["kind"],
        size=Size(*levels[0].shape),
        georef=Georef(Affine(*ours["transform"]), ours["unit"], ours["crs"]),
        classes=tuple(
            LabelClass(v, n, cast("tuple[int, int, int]", colors[v])) for v, n in names.items() if v != NODATA
        ),
        fingerprint=ours["fingerprint"],
        scale=_pair(ours.get("scale", (1.0, 1.0))),
        corner=_pair(ours.get("corner", (0.0, 0.0))),
        levels=levels,
        layers={name: _layer(group, name, about, len(levels)) for name, about in ours.get("layers", {}).items()},
    )


def _layer(group: zarr.Group, name: str, about: Mapping[str, Any], levels: int) -> LayerData:
    arrays = tuple(cast("zarr.Array[Any]", group[f"{name}/{level}"]) for level in range(levels))
    if any(array.dtype != np.uint8 or array.shape[0] != len(about["channels"]) for array in arrays):
        raise ValueError(f"the layer {name} does not hold what its description says")
    return LayerData(tuple(about["channels"]), dict(about["about"]), arrays)


def _pair(numbers: Sequence[float]) -> tuple[float, float]:
    y, x = (float(number) for number in numbers)
    return y, x


def _level(group: zarr.Group, path: str) -> zarr.Array[Any]:
    array = group[path]
    if not isinstance(array, zarr.Array) or array.dtype != np.uint8 or array.ndim != 2:
        raise ValueError(f"level {path} is not a two-dimensional uint8 array")
    return array
