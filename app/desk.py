"""What the server holds for everybody who looks: the folders, opened images and masks, and the network's process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import numpy as np

from app.signing import Signer
from pipelines.bundle import image_fingerprint
from pipelines.display.catalog import Catalog, read_key
from pipelines.display.masks import MaskTiles
from pipelines.display.mercator import BaseMap, MapMask, MapTiles
from pipelines.display.tiles import ImageTiles, blank_tiles, open_tiles
from pipelines.errors import RequestError
from pipelines.fetch import cache_folder
from pipelines.live.batch import BatchRun
from pipelines.live.board import Board, confidence_at
from pipelines.live.corrected import CorrectedTiles
from pipelines.live.corrections import Corrections
from pipelines.live.engine import REGIONS, Engine, Task

IMAGES: Final = 4
"""Images that are kept open."""
MASKS: Final = 8
ON_MAP: Final = ".map"
"""Behind the opaque name of an image or a mask: the same on a map."""

Value = TypeVar("Value")


class Desk:
    """One for the process; every method may be called from any thread."""

    def __init__(
        self,
        roots: Sequence[Path],
        *,
        cache: Path | None = None,
        key: bytes | None = None,
        base_map: BaseMap | None = None,
    ) -> None:
        place = cache or cache_folder()
        secret = key or read_key(place / "viewer.key")
        self.catalog = Catalog(roots, secret)
        self.signer = Signer(secret)
        self.base_map = base_map
        self.engine = Engine(self.catalog.roots[0] / REGIONS)
        self.batch: BatchRun | None = None
        """The run over many images that is on, or the last one until it is put away."""
        self._cache = place / "overviews"
        self._images: _Kept[ImageTiles] = _Kept(IMAGES, ImageTiles.close)
        self._masks: _Kept[MaskTiles] = _Kept(MASKS, MaskTiles.close)
        self._corrections: _Kept[Corrections] = _Kept(MASKS, lambda _: None)

    def image(self, name: str) -> ImageTiles | None:
        """An opened image; None for a name that is none. Raises ImageError where it cannot be read.

        With ON_MAP behind its name, as a map shows it.
        """
        if name.endswith(ON_MAP):
            image = self.image(name.removesuffix(ON_MAP))
            if image is None or not can_be_mapped(image):
                return None
            mark = str(id(image))
            return self._images.get(name, mark, lambda: MapTiles(image))
        entry = self.catalog.image(name)
        if entry is None or not self.catalog.holds(entry.path):
            return None
        if entry.alone:
            mark = str((entry.path / "zarr.json").stat().st_mtime_ns) if entry.path.is_dir() else "gone"
            return self._images.get(name, mark, lambda: blank_tiles(entry.path))
        state = image_fingerprint(str(entry.path))
        return self._images.get(name, state, lambda: open_tiles(entry.path, self._cache))

    def world(self, name: str) -> MapTiles:
        """An image as a map shows it. Raises RequestError where none can."""
        tiles = self.image(name + ON_MAP)
        assert isinstance(tiles, MapTiles), "only what can be mapped is asked for"
        return tiles

    def mask(self, name: str) -> MaskTiles | CorrectedTiles | MapMask | Board | None:
        """A mask by its opaque name or that of a running task, or as a map shows it; None where there is none."""
        if name.endswith(ON_MAP):
            return self._on_map(name.removesuffix(ON_MAP))
        task = self.engine.tasks.get(name)
        if task is not None:
            return self.board(task)
        entry = self.catalog.layer(name)
        if entry is None or not self.catalog.holds(entry.labels):
            return None
        image = self.image(entry.image) if entry.image else None
        georef = image.source.georef if image else None
        state = str((entry.labels / "zarr.json").stat().st_mtime_ns) if entry.labels.is_dir() else "gone"
        tiles = self._masks.get(name, state, lambda: MaskTiles.open(entry.labels, georef, self._cache))
        if entry.mask is None:
            return tiles
        return CorrectedTiles(tiles, self._corrections.get(name, str(entry.folder), lambda: Corrections(entry.folder)))

    def _on_map(self, name: str) -> MapMask | None:
        """A mask that was written out, on the map of its image."""
        entry, tiles = self.catalog.layer(name), self.mask(name)
        image = self.image(entry.image + ON_MAP) if entry and entry.image else None
        if entry is None or not isinstance(tiles, MaskTiles | CorrectedTiles) or not isinstance(image, MapTiles):
            return None
        path = entry.folder / "mask.tif"
        if not (entry.written and path.is_file() and self.catalog.holds(path)):
            return None
        return MapMask(path, image.grid, tiles.labels.classes)

    def begin_corrections(self, name: str) -> str:
        """Lays out corrections for a mask, beside it, and gives the opaque name of what can then be painted on.

        Raises RequestError where the mask lies at the top of what is shown: beside it is outside.
        """
        entry, tiles = self.catalog.layer(name), self.mask(name)
        if entry is None or not isinstance(tiles, MaskTiles):
            raise RequestError("this mask is gone")
        if not self.catalog.holds(entry.folder.parent):
            raise RequestError(f"corrections lie beside {entry.folder}, which is not shown; show the folder above it")
        image = self.image(entry.image) if entry.image else None
        fingerprint = image_fingerprint(entry.image_path) if image and not entry.alone else ""
        folder = Corrections.begin(
            entry.folder,
            entry.image_path,
            fingerprint,
            entry.model,
            entry.cores,
            tiles.labels.classes,
            tiles.labels.size,
        )
        self.catalog.look(fresh=-1)
        return self.catalog.name("layer", folder)

    def board(self, task: Task) -> Board | None:
        """What can be seen of a task."""
        try:
            return self.engine.board(task)
        except FileNotFoundError:
            return None

    def confidence(self, name: str, y: int, x: int) -> float | None:
        """How probable the class at a label pixel of a region is, 0..1; None where that is not known."""
        task = self.engine.tasks.get(name)
        if task is not None:
            board = self.board(task)
            return board.confidence_at(y, x) if board else None
        entry = self.catalog.layer(name)
        plane = entry.confidence if entry else None
        if plane is not None:
            return confidence_at(np.load(plane, mmap_mode="r"), y, x) if self.catalog.holds(plane) else None
        mask = self.mask(name)
        return mask.probability_at(y, x) if isinstance(mask, MaskTiles) else None

    def start_batch(self, images: Sequence[Path], model: str, folder: str, cores: int | None) -> None:
        """Starts a run over many images into a folder of the first root, unless one is on."""
        if self.batch is None or self.batch.status is not None:
            self.batch = BatchRun(images, model, self.catalog.roots[0] / folder, cores)

    def close(self) -> None:
        """Ends the network's process and what else runs, and closes all files."""
        self.engine.close()
        if self.batch is not None:
            self.batch.close()
        self._images.clear()
        self._masks.clear()


class _Kept(Generic[Value]):
    """The last few values, each made once for a name and a state."""

    def __init__(self, most: int, drop: Callable[[Value], Any]) -> None:
        self._most = most
        self._drop = drop
        self._values: OrderedDict[Hashable, tuple[str, Value]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: Hashable, state: str, make: Callable[[], Value]) -> Value:
        with self._lock:
            known = self._values.get(name)
            if known is None or known[0] != state:
                if known is not None:
                    self._drop(self._values.pop(name)[1])
                self._values[name] = (state, make())
                while len(self._values) > self._most:
                    self._drop(self._values.popitem(last=False)[1][1])
            self._values.move_to_end(name)
            return self._values[name][1]

    def clear(self) -> None:
        with self._lock:
            while self._values:
                self._drop(self._values.popitem()[1][1])


def can_be_mapped(image: ImageTiles) -> bool:
    """Whether it is a raster with a CRS, in a file that GDAL reads."""
    return image.source.kind == "raster" and image.source.georef.unit == "crs" and Path(image.source.path).is_file()


_desk: Desk | None = None


def open_desk(desk: Desk | None) -> None:
    """Sets the desk of this process: the page and the routes share it."""
    global _desk
    _desk = desk


def the_desk() -> Desk:
    """The desk of this process."""
    assert _desk is not None, "the server opens the desk before the page runs"
    return _desk
