"""image.zarr: the pixels that were segmented as an OME-Zarr 0.5 image, which carries its labels within it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from tiling.disk import flush_tree
from tiling.errors import ImageError
from tiling.exports.files import replacing
from tiling.geometry import Size
from tiling.grid import blocks
from tiling.labels import Labels
from tiling.view import View

CARRIED: Final = "classes"
"""Name of the label image below `labels/`."""
_AT_ONCE: Final = 2**26
"""Bytes of pixels that are read at once, or one chunk."""
_COLOURS: Final = {"red": "FF0000", "green": "00FF00", "blue": "0000FF"}


def write_image(labels: Labels, folder: Path, image: View | None, _tags: Mapping[str, str]) -> list[Path]:
    """Writes image.zarr: (bands, H, W) on the labels' own grid and levels, in the image's dtype, and `labels/classes`.

    A coarser level is the mean of 2 x 2 pixels. Pixels without data are what the image holds there, and no data in the
    labels. Raises ImageError where the image is not at hand.
    """
    if image is None:
        raise ImageError(f"{folder}: the image is gone or has changed, and this export holds its pixels")
    assert image.size == labels.size
    with replacing(folder / "image.zarr") as path:
        group = zarr.create_group(path, zarr_format=3)
        levels = [_create(group, k, image, Size(*level.shape), labels) for k, level in enumerate(labels.levels)]
        for box in blocks(image.size, levels[0].shards[1]):  # type: ignore[index]
            if not image.blank(box):
                levels[0][(slice(None), *box.slices)] = np.moveaxis(image.read(box), -1, 0)
        for fine, coarse in pairwise(levels):
            _halve(fine, coarse)
        group.attrs.update(_described(labels, image, np.asarray(levels[-1][:])))
        _carry(labels, path)
        flush_tree(path)
    return [folder / "image.zarr"]


def mean2(pixels: NDArray[Any]) -> NDArray[Any]:
    """(bands, H, W) -> half of it, rounded up: the mean of every 2 x 2, rounded for integers, in the same dtype."""
    odd = [(0, 0), (0, pixels.shape[1] % 2), (0, pixels.shape[2] % 2)]
    padded = np.pad(pixels, odd, mode="edge")
    mean = np.mean([padded[:, y::2, x::2] for y in (0, 1) for x in (0, 1)], axis=0, dtype=np.float64)
    return np.asarray((mean if pixels.dtype.kind == "f" else np.floor(mean + 0.5)).astype(pixels.dtype))


def _create(group: zarr.Group, level: int, image: View, size: Size, labels: Labels) -> zarr.Array[Any]:
    dtype, bands, chunk = image.source.dtype, len(image.source.bands), labels.levels[0].chunks[0]
    many = max(1, int((_AT_ONCE / (bands * dtype.itemsize)) ** 0.5) // chunk)
    side = chunk * min(many, -(-max(size.height, size.width) // chunk))
    return group.create_array(
        str(level),
        shape=(bands, size.height, size.width),
        dtype=dtype,
        shards=(bands, side, side),
        chunks=(1, chunk, chunk),
        compressors=ZstdCodec(level=3),
        fill_value=0,
        dimension_names=("c", "y", "x"),
        config={"write_empty_chunks": False},
    )


def _halve(fine: zarr.Array[Any], coarse: zarr.Array[Any]) -> None:
    """Fills a level from the one before, a shard at a time."""
    _, height, width = coarse.shape
    for box in blocks(Size(height, width), cast("tuple[int, ...]", coarse.shards)[1]):
        below = np.s_[:, 2 * box.y : 2 * box.bottom, 2 * box.x : 2 * box.right]
        coarse[(slice(None), *box.slices)] = mean2(cast("NDArray[Any]", fine[below]))


def _described(labels: Labels, image: View, coarsest: NDArray[Any]) -> dict[str, Any]:
    """The labels' axes and places with an axis of channels before them; what each channel shows, and its range."""
    ome = cast("dict[str, Any]", zarr.open_group(labels.path, mode="r").attrs.asdict()["ome"])
    spatial = ome["multiscales"][0]
    datasets = [
        {"path": one["path"], "coordinateTransformations": [_with_channel(t) for t in one["coordinateTransformations"]]}
        for one in spatial["datasets"]
    ]
    scale = {"name": labels.name, "axes": [{"name": "c", "type": "channel"}, *spatial["axes"]], "datasets": datasets}
    channels = [
        {"label": band, "color": _COLOURS.get(band, "FFFFFF"), "active": True, "window": _window(values)}
        for band, values in zip(image.source.bands, coarsest, strict=True)
    ]
    return {
        "ome": {
            "version": "0.5",
            "multiscales": [scale | {"type": "mean"}],
            "omero": {"channels": channels},
        }
    }


def _with_channel(move: Mapping[str, Any]) -> dict[str, Any]:
    kind = move["type"]
    return {"type": kind, kind: [1.0 if kind == "scale" else 0.0, *move[kind]]}


def _window(values: NDArray[Any]) -> dict[str, float]:
    """What a viewer makes black and white of: all of a byte, or what the image holds of other numbers."""
    if values.dtype == np.uint8:
        return {"min": 0, "max": 255, "start": 0, "end": 255}
    numbers = values[np.isfinite(values)]
    low, high = (float(n) for n in (numbers.min(), numbers.max())) if numbers.size else (0.0, 1.0)
    return {"min": low, "max": max(high, low + 1e-6), "start": low, "end": max(high, low + 1e-6)}


def _carry(labels: Labels, path: Path) -> None:
    """Copies the label image to labels/classes, which says whose labels they are."""
    zarr.create_group(path / "labels", zarr_format=3, attributes={"ome": {"version": "0.5", "labels": [CARRIED]}})
    place = path / "labels" / CARRIED
    shutil.copytree(labels.path, place, ignore=_layers_of(labels.layers))
    group = zarr.open_group(place, mode="r+")
    attributes = cast("dict[str, Any]", group.attrs.asdict())
    attributes["ome"]["image-label"]["source"] = {"image": "../../"}
    attributes["veca"].pop("layers", None)
    group.attrs.put(attributes)


def _layers_of(layers: Sequence[str] | Mapping[str, Any]) -> Any:
    """Leaves out the arrays beside the labels, which are images of their own."""
    return lambda folder, names: [name for name in names if name in layers and Path(folder).name != name]
