"""Coarser levels of a mask in which nothing vanishes: of the pixels below one, the rarest class shows. Made once."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from pipelines.display.making import Making, tell
from tiling import NODATA, Box, LabelClass, Size
from tiling.grid import blocks
from tiling.labels import Labels

IN_MEMORY: Final = 2**24
"""Pixels of a mask whose thin levels are made in memory, when the first tile is asked for."""
COUNTED: Final = 2**22
"""Pixels of the level on which classes are counted to rank them."""
BLOCK: Final = 4096
CHUNK: Final = 512


class ThinLevels:
    """Levels 1, 2, ... of a mask; safe to use from several threads."""

    def __init__(self, labels: Labels, cache: Path) -> None:
        self._labels = labels
        self._lock = threading.Lock()
        self._levels: list[Any] = []
        self._making: Making | None = None
        if labels.size.pixels <= IN_MEMORY:
            self._levels = build(labels)
        else:
            changed = (labels.path / "zarr.json").stat().st_mtime_ns
            name = hashlib.sha256(f"thin {labels.path} {labels.fingerprint} {changed}".encode()).hexdigest()[:32]
            self._making = Making(cache / name, "pipelines.display.thin", [str(labels.path)])

    @property
    def progress(self) -> float:
        """0..1; 1 when they are there."""
        return 1.0 if self._making is None else self._making.progress

    def read(self, box: Box, level: int) -> NDArray[np.uint8] | None:
        """(h, w) of a level from 1 on; None while it is being made."""
        if self.progress < 1:
            return None
        with self._lock:
            if not self._levels and self._making is not None:
                count = len(self._labels.levels) - 1
                self._levels = [zarr.open_array(self._making.folder / str(i), mode="r") for i in range(1, count + 1)]
        return np.ascontiguousarray(self._levels[level - 1][box.slices])

    def close(self) -> None:
        """Stops the process that makes them."""
        if self._making is not None:
            self._making.close()


def rank(classes: Sequence[LabelClass], counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(256,) which value shows before which: rare classes first, then background, then no data. `counts` is (256,)."""
    order = sorted(classes, key=lambda c: (c.name.strip().lower() != "background", -counts[c.value], -c.value))
    ranks = np.zeros(256, np.uint8)
    for place, entry in enumerate(order, 1):
        ranks[entry.value] = place
    return ranks


def rank_of(labels: Labels) -> NDArray[np.uint8]:
    """The ranks of a mask's classes, counted on a level of at most COUNTED pixels: what is thin is rare there."""
    level = next((a for a in labels.levels if a.shape[0] * a.shape[1] <= COUNTED), labels.levels[-1])
    return rank(labels.classes, np.bincount(np.asarray(level[:]).ravel(), minlength=256))


def halve(values: NDArray[np.uint8], ranks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) -> (ceil(H/2), ceil(W/2)): of each 2 x 2 pixels the value of the highest rank."""
    odd = (values.shape[0] % 2, values.shape[1] % 2)
    padded = np.pad(values, ((0, odd[0]), (0, odd[1])), mode="edge") if any(odd) else values
    back = np.full(256, NODATA, np.uint8)
    back[ranks[ranks > 0]] = np.flatnonzero(ranks)
    ranked = ranks[padded]
    rows = np.maximum(ranked[::2], ranked[1::2])
    return back[np.maximum(rows[:, ::2], rows[:, 1::2])]


def build(labels: Labels) -> list[NDArray[np.uint8]]:
    """All levels from 1 on, in memory."""
    ranks = rank_of(labels)
    levels = [labels.read(labels.size.box)]
    for _ in labels.levels[1:]:
        levels.append(halve(levels[-1], ranks))
    return levels[1:]


def write(path: Path, folder: Path) -> None:
    """Makes all levels of a mask from 1 on as arrays in `folder`, block by block."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    labels = Labels.open(path)
    ranks = rank_of(labels)
    arrays: list[Any] = [labels.levels[0]]
    total = sum(level.shape[0] * level.shape[1] for level in labels.levels[1:])
    done = 0
    for number, level in enumerate(labels.levels[1:], 1):
        made = zarr.create_array(
            folder / str(number), shape=level.shape, chunks=(CHUNK, CHUNK), dtype="uint8", fill_value=NODATA,
            zarr_format=3, compressors=ZstdCodec(level=1),
        )  # fmt: skip
        below = arrays[-1]
        for box in blocks(Size(*level.shape), BLOCK // 2):
            bottom, right = min(2 * box.bottom, below.shape[0]), min(2 * box.right, below.shape[1])
            fine = np.asarray(below[2 * box.y : bottom, 2 * box.x : right])
            made[box.slices] = halve(fine, ranks)
            done += box.pixels
            tell(folder, 0.999 * done / total)
        arrays.append(made)
    tell(folder, 1.0)


if __name__ == "__main__":
    os.nice(10)
    write(Path(sys.argv[1]), Path(sys.argv[2]))
