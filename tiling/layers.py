"""What lies beside the labels: how probable each class is, and how sure the model was. A byte a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from tiling.geometry import Size
from tiling.labels import NODATA

STEPS: Final = 254
"""Bytes 0..254 stand for 0..1; 255 is no data."""


@dataclass(frozen=True, slots=True)
class Layer:
    """An array (channels, H, W) of values 0..1 on the labels' own grid."""

    name: str
    """Of its group in the label image: probability, uncertainty."""
    channels: tuple[str, ...]
    """What each channel says, like the name of a class."""
    about: tuple[tuple[str, str], ...] = ()
    """What else a reader should know, by name: how well probabilities were calibrated."""

    def as_json(self) -> dict[str, Any]:
        return {"channels": list(self.channels), "about": dict(self.about)}

    @classmethod
    def from_json(cls, name: str, content: Mapping[str, Any]) -> Layer:
        return cls(name, tuple(content["channels"]), tuple((str(k), str(v)) for k, v in content["about"].items()))


def quantised(values: NDArray[np.float32], seen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(c, h, w) of 0..1 -> bytes; NODATA where nothing was seen (h, w). What is read back is off by 1/508 at most."""
    steps: NDArray[np.uint8] = np.rint(values.clip(0, 1) * STEPS).astype(np.uint8)
    steps[:, ~seen] = NODATA
    return steps


def entropy(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """(c, h, w) -> (h, w): 0 where one class is certain, 1 where all are alike (Shannon's, over log c)."""
    classes = len(probabilities)
    if classes == 1:
        return np.zeros(probabilities.shape[1:], np.float32)
    p = np.maximum(probabilities, np.finfo(np.float32).tiny)
    result: NDArray[np.float32] = -(p * np.log(p)).sum(axis=0) / np.float32(np.log(classes))
    return result


def create_array(group: zarr.Group, level: int, channels: int, size: Size, block: int, chunk: int) -> zarr.Array[Any]:
    """One level of a layer: a block is one file, as of the labels."""
    return group.create_array(
        str(level),
        shape=(channels, size.height, size.width),
        dtype="uint8",
        shards=(channels, block, block),
        chunks=(1, chunk, chunk),
        compressors=ZstdCodec(level=3),
        fill_value=NODATA,
        dimension_names=("c", "y", "x"),
        config={"write_empty_chunks": False},
    )


def describe(layer: Layer, labels: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's attributes as an OME-Zarr image of its own, from those of its labels: the same axes and places."""
    spatial = labels["ome"]["multiscales"][0]
    datasets = [
        {"path": dataset["path"], "coordinateTransformations": [_with_channel(t) for t in dataset[_MOVES]]}
        for dataset in spatial["datasets"]
    ]
    axes = [{"name": "c", "type": "channel"}, *spatial["axes"]]
    window = {"min": 0, "max": STEPS, "start": 0, "end": STEPS}
    channels = [{"label": name, "color": "FFFFFF", "window": window, "active": i == 0} for i, name in _numbered(layer)]
    return {
        "ome": {
            "version": "0.5",
            "multiscales": [{"name": layer.name, "axes": axes, "datasets": datasets, "type": "mean"}],
            "omero": {"channels": channels},
        },
        "veca": {**layer.as_json(), "scale": 1 / STEPS, "nodata": NODATA},
    }


def mean2(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(c, H, W) -> half of it, rounded up: the mean of the data of every 2 x 2; no data where most of it is none."""
    odd = [(0, 0), (0, values.shape[1] % 2), (0, values.shape[2] % 2)]
    padded = np.pad(values, odd, mode="edge")
    four = np.stack([padded[:, y::2, x::2] for y in (0, 1) for x in (0, 1)])
    data = four != NODATA
    count = data.sum(axis=0, dtype=np.uint16)
    total = np.where(data, four, 0).sum(axis=0, dtype=np.uint16)
    mean = (total + count // 2) // np.maximum(count, 1)
    return np.where(count >= 2, mean, NODATA).astype(np.uint8)


def build(levels: Sequence[zarr.Array[Any]]) -> None:
    """Fills levels 1, 2, ... from level 0, one block at a time."""
    for fine, coarse in pairwise(levels):
        side = cast("tuple[int, int, int]", coarse.shards)[1]
        _, height, width = coarse.shape
        for y in range(0, height, side):
            for x in range(0, width, side):
                below = np.s_[:, 2 * y : 2 * (y + side), 2 * x : 2 * (x + side)]
                coarse[:, y : y + side, x : x + side] = mean2(cast("NDArray[np.uint8]", fine[below]))


_MOVES: Final = "coordinateTransformations"


def _with_channel(move: Mapping[str, Any]) -> dict[str, Any]:
    kind = move["type"]
    return {"type": kind, kind: [1.0 if kind == "scale" else 0.0, *move[kind]]}


def _numbered(layer: Layer) -> list[tuple[int, str]]:
    return list(enumerate(layer.channels))
