"""The label image being written: a sharded Zarr v3, block by block, that survives being killed at any moment."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self, cast

import numpy as np
import zarr
from filelock import FileLock
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from tiling import layers as beside
from tiling import pyramid
from tiling.disk import flush, flush_tree, remove
from tiling.errors import ImageError
from tiling.geometry import Box, Size
from tiling.georef import Georef
from tiling.grid import blocks
from tiling.journal import Journal
from tiling.labels import NODATA, UNFINISHED, LabelClass, Labels, describe, with_files, without_files
from tiling.layers import Layer
from tiling.lock import give_back, take_lock
from tiling.source import Kind

_JOURNAL: Final = "journal.txt"
_LAYERS: Final = ("probability", "uncertainty")
"""Folders that may lie beside the levels."""
NONE: Final[Mapping[str, NDArray[np.uint8]]] = MappingProxyType({})
_LEFT_BY_BROWSERS: Final = (".DS_Store", "Thumbs.db", "desktop.ini")
"""What file browsers put into a folder that was looked at."""


class Canvas:
    """One label image under construction; `create` makes one or takes up one that was interrupted.

    A block is one shard, hence one file, and is named in the journal only once it is on the disk. What is finished
    holds nothing but the labels and their description: the same labels give the same bytes, in whatever order they
    came and however often they were interrupted.

    Only the process that created a canvas may publish it; it holds the lock until `publish` or `close`. A pickled
    canvas writes blocks from other processes that see the same folder; they count when `finish` reads the journal.
    """

    path: Path
    """The folder being written."""
    size: Size
    block: int
    """Side of a block in pixels."""

    def __init__(self, path: Path, description: dict[str, Any], lock: FileLock | None) -> None:
        """For `create` and unpickling; the folder is laid out already."""
        self._lock = lock
        self._description = description
        self.path = path
        level0 = self._level0 = cast("zarr.Array[Any]", zarr.open_group(path, mode="r+", zarr_format=3)["0"])
        self._beside = _layer_arrays(path, description)
        self.size = Size(*level0.shape)
        self.block = cast("tuple[int, int]", level0.shards)[0]
        self._journal = Journal(path / _JOURNAL)
        self._done = set(self._journal.read()) if self._journal.path.exists() else set(self.blocks)
        self._meaningful = np.zeros(256, bool)
        self._meaningful[[c["label-value"] for c in description["ome"]["image-label"]["colors"]]] = True

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        size: Size,
        block: int,
        chunk: int,
        classes: Sequence[LabelClass],
        georef: Georef,
        kind: Kind,
        name: str,
        fingerprint: str,
        scale: tuple[float, float] = (1.0, 1.0),
        corner: tuple[float, float] = (0.0, 0.0),
        layers: Sequence[Layer] = (),
        anew: bool = False,
    ) -> Self:
        """Takes up the canvas at `path` where it is the same (fingerprint and all else); otherwise starts anew there.

        With `anew` it starts anew in any case. Block and chunk are sides in pixels, a block a whole number of chunks.
        Finished blocks are read again and checked; one that does not match its checksum is to be done again. Raises
        Busy while another process writes it, and ImageError where `path` holds something that is no canvas,
        which is left alone.
        """
        if min(block, chunk) <= 0 or block % chunk:
            raise ValueError(
                f"a block must be a whole number of chunks, got blocks of {block} and chunks of {chunk} px"
            )
        sizes = pyramid.level_sizes(size)
        description = describe(
            sizes=sizes,
            classes=classes,
            georef=georef,
            kind=kind,
            name=name,
            fingerprint=fingerprint,
            scale=scale,
            corner=corner,
            layers={layer.name: layer.as_json() for layer in layers},
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = take_lock(path)
        try:
            if not anew and _is_same(path, description, size, block, chunk):
                _drop_damaged_blocks(path)
            else:
                _lay_out(path, description, size, block, chunk)
            return cls(path, description, lock)
        except BaseException:
            give_back(lock)
            raise

    @classmethod
    def like(cls, path: Path, labels: Labels, *, block: int, chunk: int, fingerprint: str) -> Self:
        """An empty one for other values in the place of a label image, of the same classes. Always starts anew."""
        return cls.create(
            path,
            size=labels.size,
            block=block,
            chunk=chunk,
            classes=labels.classes,
            georef=labels.georef,
            kind=labels.kind,
            name=labels.name,
            fingerprint=fingerprint,
            scale=labels.scale,
            corner=labels.corner,
            anew=True,
        )

    @property
    def blocks(self) -> Iterator[Box]:
        """All blocks, row by row; those at the right and bottom are cut at the image's edge."""
        return blocks(self.size, self.block)

    def is_done(self, box: Box) -> bool:
        """Whether a block is finished, as far as this process knows."""
        return box in self._done

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of what is written beside the labels."""
        return tuple(self._beside)

    def write(self, box: Box, labels: NDArray[np.uint8], layers: Mapping[str, NDArray[np.uint8]] = NONE) -> None:
        """Stores the labels (h, w) of one block, and all `layers` (channels, h, w); then they count as done.

        Different blocks may be written by several threads and processes at once. Raises OSError where the disk is full;
        the block is then not done. Raises ValueError for what is not one block of known labels.
        """
        self.note({box: self.store(box, labels, layers)})

    def store(self, box: Box, labels: NDArray[np.uint8], layers: Mapping[str, NDArray[np.uint8]] = NONE) -> int:
        """Half of `write`: puts all on the disk and returns its CRC-32, for another process to `note`.

        A block is replaced in one step: who stores it twice, even at once, leaves one whole block.
        """
        self._check(box, labels)
        if layers.keys() != self._beside.keys():
            raise ValueError(f"layers {sorted(self._beside)} are wanted beside the labels, got {sorted(layers)}")
        for name, array in self._beside.items():
            _put(array, self.path / name / "0" / "c" / "0", box, self.block, layers[name])
        _put(self._level0, self.path / "0" / "c", box, self.block, labels)
        return _crc(labels, *(layers[name] for name in self._beside))

    def note(self, stored: Mapping[Box, int]) -> None:
        """The other half of `write`: on return the blocks, with the CRC-32 of their labels, count as done.

        Appending is safe for several processes on a local disk only. Network file systems promise no such thing: there
        one process notes what all of them store.
        """
        self._journal.append(stored)
        self._done |= stored.keys()

    def noted(self) -> dict[Box, int]:
        """The blocks that any process noted until now, with the CRC-32 of their labels."""
        return self._journal.read()

    def damaged(self, among: Collection[Box] | None = None) -> list[Box]:
        """The blocks (of all, or among some) that were noted, but cannot be read back as they were stored."""
        noted, arrays = self.noted(), [self._level0, *self._beside.values()]
        return [box for box in (noted if among is None else among) if _read_crc(arrays, box) != noted.get(box)]

    def forget(self, boxes: Collection[Box]) -> None:
        """Takes blocks off the list of those that are done."""
        self._journal.rewrite({box: crc for box, crc in self.noted().items() if box not in boxes})
        self._done -= set(boxes)

    def is_current(self) -> bool:
        """Whether the folder still holds this canvas, unfinished: not removed, moved away or replaced by another."""
        chunk = self._level0.chunks[0]
        return self._journal.path.exists() and _is_same(self.path, self._description, self.size, self.block, chunk)

    def finish(self) -> Labels:
        """Adds the coarser levels and the description. Raises ImageError while blocks are missing.

        For the process that holds the lock, or one that it waits for.
        """
        if not self._journal.path.exists():
            return Labels.open(self.path)
        self._done |= set(self._journal.read())
        missing = [box for box in self.blocks if box not in self._done]
        if missing:
            raise ImageError(
                f"{self.path}: {len(missing)} blocks are not written yet, the first at {missing[0]}; "
                "run again to do what is missing"
            )
        _tidy(self.path)
        group = zarr.open_group(self.path, mode="r+", zarr_format=3)
        coarser = pyramid.level_sizes(self.size)[1:]
        pyramid.build([self._level0, *(_add_level(group, i, s, self._level0) for i, s in enumerate(coarser, 1))])
        for name, array in self._beside.items():
            self._finish_layer(group[name], name, array)
        group.attrs.put(with_files(self._description, self.path))
        for made in self.path.iterdir():
            if made.name != "0":  # whose blocks are on the disk already
                flush_tree(made)
        flush(self.path)
        self._journal.path.unlink()
        flush(self.path)
        return Labels.open(self.path)

    def publish(self, final: Path) -> Labels:
        """Finishes, moves the folder to `final` in one step, replacing what was there, and gives the lock back."""
        assert self._lock is not None, "only the process that created a canvas may publish it"
        self.finish()
        old = final.with_name(f"{final.name}.old")
        if final.exists():
            remove(old)
            final.rename(old)
        self.path.rename(final)
        flush(final.parent)
        remove(old)
        self.close()
        return Labels.open(final)

    def close(self) -> None:
        """Gives the lock back; what is written stays, for `create` to take up."""
        if self._lock is not None:
            give_back(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Canvas], tuple[Path, dict[str, Any], None]]:
        return type(self), (self.path, self._description, None)

    def _finish_layer(self, group: Any, name: str, array: zarr.Array[Any]) -> None:
        """Adds a layer's coarser levels and its description."""
        layer = Layer.from_json(name, self._description["veca"]["layers"][name])
        coarser, chunk = pyramid.level_sizes(self.size)[1:], self._level0.chunks[0]
        count = len(layer.channels)
        made = [beside.create_array(group, i, count, s, self.block, chunk) for i, s in enumerate(coarser, 1)]
        beside.build([array, *made])
        group.attrs.put(beside.describe(layer, self._description))

    def _check(self, box: Box, labels: NDArray[np.uint8]) -> None:
        """Raises ValueError unless `box` is a block and `labels` fit it and mean something."""
        height, width = min(self.block, self.size.height - box.y), min(self.block, self.size.width - box.x)
        if box.y % self.block or box.x % self.block or (box.height, box.width) != (height, width):
            raise ValueError(f"{box} is not a block of {self.size} in blocks of {self.block} px")
        if labels.shape != (height, width) or labels.dtype != np.uint8:
            raise ValueError(f"a block of {height} x {width} uint8 labels is wanted, got {labels.shape} {labels.dtype}")
        if not self._meaningful[labels].all():
            strange = sorted({int(value) for value in np.unique(labels) if not self._meaningful[value]})
            raise ValueError(f"labels at {box} hold {strange}, which are neither a class nor no data (255)")


def _is_same(path: Path, description: dict[str, Any], size: Size, block: int, chunk: int) -> bool:
    """Whether the folder holds this very canvas, unfinished or finished but not yet published."""
    try:
        group = zarr.open_group(path, mode="r", zarr_format=3)
        attributes, array = group.attrs.asdict(), group["0"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    wanted = json.loads(json.dumps(description))
    unfinished = (path / _JOURNAL).exists()
    return (
        isinstance(array, zarr.Array)
        and (array.shape, array.shards, array.chunks) == ((size.height, size.width), (block, block), (chunk, chunk))
        and (without_files(attributes) == wanted or (unfinished and attributes == {UNFINISHED: wanted}))
    )


def _drop_damaged_blocks(path: Path) -> None:
    """Takes blocks that the disk lost off the journal, and whatever a kill left half-written."""
    journal = Journal(path / _JOURNAL)
    if not journal.path.exists():
        return
    _tidy(path)
    group = zarr.open_group(path, mode="r", zarr_format=3)
    level0 = cast("zarr.Array[Any]", group["0"])
    arrays = [level0, *_layer_arrays(path, cast("dict[str, Any]", group.attrs.asdict())[UNFINISHED]).values()]
    journal.rewrite({box: crc for box, crc in journal.read().items() if _read_crc(arrays, box) == crc})


def _layer_arrays(path: Path, description: Mapping[str, Any]) -> dict[str, zarr.Array[Any]]:
    """Level 0 of each layer that a canvas has."""
    group = zarr.open_group(path, mode="r+", zarr_format=3)
    return {name: cast("zarr.Array[Any]", group[f"{name}/0"]) for name in description["veca"].get("layers", {})}


def _put(array: zarr.Array[Any], folder: Path, box: Box, side: int, values: NDArray[np.uint8]) -> None:
    """Stores a block as one file below `folder`; on return it is on the disk."""
    row = folder / str(box.y // side)
    shard = row / str(box.x // side)
    if not shard.exists() and (values == array.fill_value).all():
        return  # which is what a block without a file reads as
    fresh_folders = () if row.exists() else (folder, folder.parent)
    try:
        array[(..., *box.slices)] = values
    except (ValueError, RuntimeError):  # Zarr reads a block at the edge first, and fails where the disk spoiled it
        shard.unlink(missing_ok=True)
        array[(..., *box.slices)] = values
    for changed in (shard, row, *fresh_folders):
        if changed.exists():  # a block without any data leaves no file
            flush(changed)


def _read_crc(arrays: Sequence[zarr.Array[Any]], box: Box) -> int | None:
    try:
        return _crc(*(cast("NDArray[np.uint8]", array[(..., *box.slices)]) for array in arrays))
    except (ValueError, RuntimeError):  # what Zarr and its codecs raise for bytes they cannot decode
        return None


def _lay_out(path: Path, description: dict[str, Any], size: Size, block: int, chunk: int) -> None:
    """An empty canvas, replacing any other one. The journal comes last: a canvas without it is not taken up."""
    _refuse_strangers(path)
    remove(path)
    group = zarr.create_group(path, zarr_format=3, attributes={UNFINISHED: description})
    _create_array(group, "0", size, block, chunk)
    for name, layer in description["veca"].get("layers", {}).items():
        beside.create_array(group.create_group(name), 0, len(layer["channels"]), size, block, chunk)
    Journal(path / _JOURNAL).rewrite({})
    flush_tree(path)
    flush(path.parent)


def _refuse_strangers(path: Path) -> None:
    """Raises ImageError where wiping `path` would delete what no canvas can have put there."""
    found = [path] if path.is_file() else list(path.iterdir()) if path.is_dir() else []
    strange = [p.name for p in found if not _is_expendable(p)]
    if strange:
        raise ImageError(
            f"{path}: holds {strange[0]!r}, which is not part of a label image; move it away or choose another folder"
        )


def _is_expendable(path: Path) -> bool:
    ours = path.suffix == ".partial" or path.stem in ("zarr", "journal", *_LAYERS) or path.stem.isdigit()
    return ours or path.name in _LEFT_BY_BROWSERS


def _create_array(group: zarr.Group, name: str, size: Size, block: int, chunk: int) -> zarr.Array[Any]:
    return group.create_array(
        name,
        shape=(size.height, size.width),
        dtype="uint8",
        shards=(block, block),
        chunks=(chunk, chunk),
        compressors=ZstdCodec(level=3),
        fill_value=NODATA,
        dimension_names=("y", "x"),
        config={"write_empty_chunks": False},
    )


def _add_level(group: zarr.Group, level: int, size: Size, level0: zarr.Array[Any]) -> zarr.Array[Any]:
    return _create_array(group, str(level), size, cast("tuple[int, int]", level0.shards)[0], level0.chunks[0])


def _tidy(path: Path) -> None:
    """Removes what an interruption left behind: half-written files, a half-built pyramid, empty folders."""
    for coarser in (found for place in (path, *(path / name for name in _LAYERS)) for found in place.glob("[1-9]*")):
        remove(coarser)
    for stray in [*path.rglob("*.partial"), *path.glob("*.new")]:
        remove(stray)
    for finest in (path / "0", *(path / name / "0" for name in _LAYERS)):
        for folder in sorted(finest.rglob("*"), reverse=True):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _crc(*arrays: NDArray[np.uint8]) -> int:
    """Of all of them, one after the other."""
    crc = 0
    for array in arrays:
        crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
    return crc
