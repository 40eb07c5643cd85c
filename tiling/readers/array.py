"""Arrays as images: NumPy in memory, and Zarr or OME-Zarr on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, TypeAlias
from uuid import uuid4

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import ObjectStore

from tiling import storage, validity
from tiling.errors import ImageError
from tiling.geometry import Box, Size
from tiling.georef import METRES, Georef, Spacing
from tiling.readers.opened import OpenedImage, level_scale, one_line
from tiling.source import Kind, Level

ZARR_FILES: Final = ("zarr.json", ".zarray", ".zgroup")
LENGTHS: Final = {"nanometer": "nm", "micrometer": "um", "millimeter": "mm", "centimeter": "cm", "meter": "m"}

_Array: TypeAlias = "NDArray[Any] | zarr.Array[Any]"


class ArraySource(OpenedImage):
    """An array (H, W) or (H, W, bands) in memory; or a Zarr array, or an OME-Zarr image with its levels, on disk.

    On disk the axes are those that the metadata names; without names (Y, X), (Y, X, C) and (T, C, Z, Y, X) are
    understood, and (C, Y, X) where the first axis is the shortest. Of T and Z the first position is read. Three bands
    of uint8 are named red, green and blue. `valid` is an (H, W) mask for level 0: True where a pixel is data.
    """

    kind: Kind = "array"

    def __init__(
        self,
        image: str | os.PathLike[str] | _Array,
        *,
        georef: Georef | None = None,
        valid: NDArray[np.bool_] | None = None,
        indexed: bool = False,
    ) -> None:
        self._given = image if isinstance(image, np.ndarray | zarr.Array) else None
        super().__init__(image if not isinstance(image, np.ndarray | zarr.Array) else "<array>", indexed=indexed)
        if self._given is not None:
            self.name = "array"
        self._options = {"georef": georef, "valid": valid}
        self._token = uuid4().hex
        with one_line(f"{self.path}: cannot be read"):
            self._arrays, self._axes = _open(self.path if self._given is None else self._given)
            self._describe(georef, valid)

    @classmethod
    def accepts(cls, path: str) -> bool:
        return any(storage.size(f"{path.rstrip('/')}/{name}") is not None for name in ZARR_FILES)

    def close(self) -> None:
        """Nothing is held open between reads."""

    @property
    def working_bytes(self) -> int:
        return 0 if isinstance(self._given, np.ndarray) else super().working_bytes

    def __reduce__(self) -> tuple[Any, ...]:
        image = self._given if self._given is not None else storage.absolute(self.path)
        return _rebuild, (image, self._options, self._chosen, self.strict)

    def __dask_tokenize__(self) -> tuple[object, ...]:
        return type(self).__name__, self._token

    def _describe(self, georef: Georef | None, valid: NDArray[np.bool_] | None) -> None:
        sizes = [_size(array, self._axes) for array in self._arrays]
        if any(coarse.pixels > fine.pixels for fine, coarse in pairwise(sizes)):
            raise ImageError(f"its levels do not go from fine to coarse: {', '.join(map(str, sizes))}")
        dtype, notes = np.dtype(self._arrays[0].dtype), []
        if dtype.kind not in "uif":
            raise ImageError(f"its values are {dtype}; expected integers or floats")
        if valid is not None and valid.shape != (sizes[0].height, sizes[0].width):
            raise ImageError(f"its valid mask is {valid.shape}; expected that of the image, {sizes[0]}")
        self._mask = None if valid is None else np.asarray(valid, dtype=np.bool_)
        self.dtype = dtype.newbyteorder("=")
        metadata = _metadata(self.path) if self._given is None else {}
        count = _length(self._arrays[0], self._axes, "C")
        names = _channel_names(metadata, count)
        colours = ("red", "green", "blue") if count == 3 and dtype == np.uint8 else None
        self.bands = names or colours or tuple(f"band {i + 1}" for i in range(count))
        self.levels = tuple(
            Level(size, _chunk(array, self._axes, size), level_scale(sizes[0], size))
            for array, size in zip(self._arrays, sizes, strict=True)
        )
        self.georef = georef if georef is not None else _georef(metadata, self._axes)
        for axis in self._axes:
            n = _length(self._arrays[0], self._axes, axis)
            if axis not in "YXC" and n > 1:
                notes.append(f"has {n} positions on axis {axis}: only the first is read")
        self._notes = tuple(f"{self.name}: {note}" for note in notes)
        in_memory = isinstance(self._given, np.ndarray)
        self.provenance = {"format": "NumPy array" if in_memory else "Zarr", "axes": self._axes}

    def _check_unchanged(self) -> None:
        if self._given is None and not self.accepts(self.path):
            raise ImageError("the file is gone")

    def _read(self, box: Box, level: int) -> NDArray[Any]:
        rows, columns = box.slices
        where = {"Y": rows, "X": columns, "C": slice(None)}
        pixels = np.asarray(self._arrays[level][tuple(where.get(axis, 0) for axis in self._axes)])
        left = [axis for axis in self._axes if axis in where]
        if "C" not in left:
            return np.array(pixels.transpose(left.index("Y"), left.index("X"))[..., None], dtype=self.dtype, order="C")
        return np.array(pixels.transpose([left.index(axis) for axis in "YXC"]), dtype=self.dtype, order="C")

    def _valid(self, box: Box, level: int) -> NDArray[np.bool_]:
        given = None if self._mask is None else self._mask[self._level0_pixels(box, level)]
        if self.dtype.kind != "f" and given is not None:
            return np.array(given)
        if self.dtype.kind != "f":
            return np.ones((box.height, box.width), dtype=np.bool_)
        return validity.combine(validity.finite(self._read_kept(box, level)), given)

    def _level0_pixels(self, box: Box, level: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Index of the level-0 pixel under the middle of each pixel of `box`."""
        y, x = self.levels[level].scale
        rows = ((np.arange(box.y, box.bottom) + 0.5) * y).astype(np.intp)
        columns = ((np.arange(box.x, box.right) + 0.5) * x).astype(np.intp)
        return rows[:, None], columns[None, :]


def _open(image: Any) -> tuple[list[_Array], str]:
    """The levels from fine to coarse, and the axes that they share."""
    if isinstance(image, np.ndarray):
        if image.ndim not in (2, 3) or 0 in image.shape:
            raise ImageError(f"its shape is {image.shape}; expected (height, width) or (height, width, bands)")
        return [image], "YXC"[: image.ndim]
    node = image if isinstance(image, zarr.Array) else _open_node(image)
    if isinstance(node, zarr.Array):
        _refuse_empty(node)
        return [node], _axes_of(node)
    scales = _multiscales(node.attrs.asdict())
    if scales is None:
        inside = ", ".join(sorted(node.keys())[:5]) or "nothing"
        raise ImageError(f"is a Zarr group without 'multiscales', holding {inside}; name the image inside it")
    arrays: list[zarr.Array[Any]] = []
    for dataset in scales["datasets"]:
        array = node.get(dataset["path"])
        if not isinstance(array, zarr.Array):
            raise ImageError(f"its level {dataset['path']!r} is not there; copy the whole folder again")
        _refuse_empty(array)
        arrays.append(array)
    names = [axis["name"] if isinstance(axis, dict) else axis for axis in scales.get("axes", [])]
    return list(arrays), _axes_named(names, arrays[0].ndim) or _axes_of(arrays[0])


def _refuse_empty(array: zarr.Array[Any]) -> None:
    if 0 in array.shape:
        raise ImageError(f"its shape is {array.shape}: it holds no pixel")


def _axes_of(array: zarr.Array[Any]) -> str:
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or []
    assert isinstance(names, Sequence)
    named = _axes_named(names, array.ndim)
    if named:
        return named
    shape = array.shape
    if len(shape) == 3 and shape[0] < min(shape[1:]):
        return "CYX"
    if len(shape) in (2, 3, 5):
        return {2: "YX", 3: "YXC", 5: "TCZYX"}[len(shape)]
    raise ImageError(f"its shape is {shape} and its axes have no names; name them, or store (Y, X) or (Y, X, C)")


def _axes_named(names: Sequence[Any], ndim: int) -> str:
    """'YXC' from ('y', 'x', 'channel'); '' where names are missing."""
    if len(names) != ndim or any(not name for name in names):
        return ""
    axes = "".join({"S": "C", "B": "C", "R": "Y"}.get(str(name)[0].upper(), str(name)[0].upper()) for name in names)
    if sorted(set(axes)) != sorted(axes) or not {"Y", "X"} <= set(axes):
        raise ImageError(f"its axes are {', '.join(map(str, names))}; expected y and x, and c, z or t beside them")
    return axes


def _multiscales(attributes: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first 'multiscales' entry of OME-Zarr 0.4 or 0.5."""
    found = attributes.get("ome", attributes).get("multiscales")
    return found[0] if found else None


def _metadata(path: str) -> Mapping[str, Any]:
    return _open_node(path).attrs.asdict()


def _open_node(path: str) -> zarr.Array[Any] | zarr.Group:
    if not storage.is_url(path):
        return zarr.open(path, mode="r")
    return zarr.open(ObjectStore(storage.folder_store(path), read_only=True), mode="r")


def _channel_names(metadata: Mapping[str, Any], count: int) -> tuple[str, ...] | None:
    channels = metadata.get("ome", metadata).get("omero", {}).get("channels", [])
    labels = tuple(str(channel.get("label", "")) for channel in channels)
    return labels if len(labels) == count and len(set(labels)) == count and all(labels) else None


def _georef(metadata: Mapping[str, Any], axes: str) -> Georef:
    """Micrometres, where an OME-Zarr names the unit of its axes, with the offset that it states; else pixels."""
    scales = _multiscales(metadata)
    if scales is None:
        return Georef.pixels()
    steps = scales["datasets"][0].get("coordinateTransformations", []) + scales.get("coordinateTransformations", [])
    units = [LENGTHS.get(axis.get("unit", "")) for axis in scales.get("axes", []) if isinstance(axis, dict)]
    places = [axes.index(axis) for axis in "YX"]
    if len(units) != len(axes) or any(units[place] is None for place in places):
        return Georef.pixels()
    if not any(step.get("type") == "scale" for step in steps):
        return Georef.pixels()
    # The level's own steps come first, then those that all levels share.
    sides, start = np.ones(2), np.zeros(2)
    for step in steps:
        numbers = np.array([step[step["type"]][place] for place in places] if step["type"] != "identity" else [1, 1])
        sides, start = (sides, start + numbers) if step["type"] == "translation" else (sides * numbers, start * numbers)
    um = np.array([METRES[str(units[place])] / METRES["um"] for place in places])
    (y, x), (top, left) = sides * um, start * um
    return Georef.micrometres(Spacing(float(y), float(x), "um")).shifted(float(top / y), float(left / x))


def _length(array: _Array, axes: str, axis: str) -> int:
    return int(array.shape[axes.index(axis)]) if axis in axes else 1


def _size(array: _Array, axes: str) -> Size:
    return Size(_length(array, axes, "Y"), _length(array, axes, "X"))


def _chunk(array: _Array, axes: str, size: Size) -> Size:
    """A Zarr array's chunk; memory is read as it comes, so the whole of it counts as one."""
    chunks = array.chunks if isinstance(array, zarr.Array) else array.shape
    return Size(min(chunks[axes.index("Y")], size.height), min(chunks[axes.index("X")], size.width))


def _rebuild(image: Any, options: dict[str, Any], chosen: Sequence[str], strict: bool) -> ArraySource:
    source = ArraySource(image, **options)
    if chosen:
        source.choose(chosen)
    source.strict = strict
    return source
