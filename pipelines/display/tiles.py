"""An image as tiles for a browser: the file's own JPEGs where it has them, encoded ones elsewhere."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from pipelines.display.levels import ZoomLevel, zoom_levels
from pipelines.display.look import Look, default_look
from pipelines.display.overview import MemoryOverview, open_overview
from pipelines.display.passthrough import JpegTiles
from pipelines.display.reduce import halve
from tiling import Box, Source, open_image
from tiling.labels import Labels
from tiling.readers.array import ArraySource
from tiling.readers.tile_cache import limit_caches

KEPT: Final = 16 * 2**20
"""Bytes of decoded tiles that an image keeps: a browser keeps what it has seen itself."""
PAPER: Final = 238
"""Grey value of what is no data: light, as glass is."""
QUALITY: Final = 90
"""Of JPEG tiles that are encoded here."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile as it goes to a browser."""

    data: bytes
    """A JPEG, unless `kind` says otherwise."""
    final: bool
    """False while the level that it is cut from is still being made."""
    kind: str = "image/jpeg"


class ImageTiles:
    """An opened image as tiles; safe to use from several threads."""

    def __init__(self, source: Source, cache: Path) -> None:
        self.source = source
        self.levels: tuple[ZoomLevel, ...] = zoom_levels(source)
        self._cache = cache
        self._jpeg = JpegTiles.open(source)
        self._lock = threading.Lock()

    @cached_property
    def overview(self) -> Any:
        with self._lock:
            return open_overview(self.source, self.levels, self._cache)

    @cached_property
    def look(self) -> Look:
        """What suits the image unless a user chooses: found from its coarsest level."""
        pixels, valid, _ = self.pixels(len(self.levels) - 1, self.levels[-1].size.box)
        return default_look(self.source, pixels, valid)

    @property
    def progress(self) -> float:
        """How much of the levels that the file lacks is made, 0..1."""
        return 1.0 if self.overview is None else float(self.overview.progress)

    @property
    def held(self) -> int:
        """Bytes that are kept in memory for it."""
        overview = self.__dict__.get("overview")
        return overview.bytes if isinstance(overview, MemoryOverview) else 0

    def tile(self, level: int, row: int, column: int, look: Look | None = None) -> Tile:
        """Tile (row, column) of a level, 0 the finest. Raises IndexError where there is none, ImageError if unreadable.

        Without a `look` it is the image's own, and a tile that is a JPEG in the file comes as it is there.
        """
        if not 0 <= level < len(self.levels):
            raise IndexError(f"there is no level {level} among {len(self.levels)}")
        zoom = self.levels[level]
        box = zoom.box(row, column)
        if look is None and zoom.native and self._jpeg is not None and zoom.tile == self._chunk(zoom):
            data = self._jpeg.tile(zoom.source, row, column)
            if data is not None:
                return Tile(data, final=True)
        pixels, valid, final = self.pixels(level, box)
        return Tile(encode(self._colours(pixels, valid, look or self.look)), final)

    def thumbnail(self, side: int) -> Tile:
        """The whole image as one picture, at most `side` pixels wide and high and at least half that, where it is."""
        fitting = [i for i, z in enumerate(self.levels) if max(z.size.height, z.size.width) <= 2 * side]
        index = fitting[0] if fitting else len(self.levels) - 1
        pixels, valid, final = self.pixels(index, self.levels[index].size.box)
        while max(valid.shape) > side:
            pixels, valid = halve(pixels, valid)
        return Tile(encode(self._colours(pixels, valid, self.look)), final)

    def pixels(self, level: int, box: Box) -> tuple[NDArray[Any], NDArray[np.bool_], bool]:
        """((h, w, bands), (h, w) valid, final) of a box of a level, in the file's own numbers."""
        zoom = self.levels[level]
        if zoom.stored:
            pixels, valid = self.overview.read(level, box)
            return pixels, valid, self.progress == 1
        below = zoom.below(box, self.source.levels[zoom.source].size)
        pixels, valid = self.source.read(below, zoom.source), self.source.valid(below, zoom.source)
        return (*(halve(pixels, valid, zoom.factor) if zoom.factor > 1 else (pixels, valid)), True)

    def close(self) -> None:
        """Releases file handles, and stops what is being made."""
        overview = self.__dict__.pop("overview", None)
        if overview is not None and not isinstance(overview, MemoryOverview):
            overview.close()
        if self._jpeg is not None:
            self._jpeg.close()
        self.source.close()

    def _chunk(self, zoom: ZoomLevel) -> Any:
        return self.source.levels[zoom.source].chunk

    def _colours(self, pixels: NDArray[Any], valid: NDArray[np.bool_], look: Look) -> NDArray[np.uint8]:
        if pixels.shape[2] != len(self.source.bands):  # a level whose making has not begun
            return np.full((*valid.shape, 3), PAPER, np.uint8)
        rgb = look.render(pixels)
        return rgb if valid.all() else np.where(valid[..., None], rgb, np.uint8(PAPER))


class BlankTiles(ImageTiles):
    """Paper in the place of an image that is not here, for a mask to lie on."""

    def __init__(self, labels: Labels) -> None:
        height, width = labels.size.height, labels.size.width
        paper = np.broadcast_to(np.full((1, 1, 3), PAPER, np.uint8), (height, width, 3))
        super().__init__(ArraySource(paper, georef=labels.georef), Path())

    @cached_property
    def overview(self) -> None:
        """None is needed: all of it is paper."""

    def pixels(self, level: int, box: Box) -> tuple[NDArray[Any], NDArray[np.bool_], bool]:
        del level
        shape = (box.height, box.width)
        return np.full((*shape, 3), PAPER, np.uint8), np.ones(shape, bool), True


def open_tiles(path: Path, cache: Path) -> ImageTiles:
    """An image file as tiles, with a folder for levels that it lacks; raises ImageError where it cannot be opened."""
    limit_caches(KEPT)
    return ImageTiles(open_image(path), cache)


def blank_tiles(labels: Path) -> ImageTiles:
    """Paper for a mask alone; raises ImageError where the label image cannot be opened."""
    return BlankTiles(Labels.open(labels))


def encode(rgb: NDArray[np.uint8]) -> bytes:
    """(h, w, 3) as a JPEG without thinned-out colour: stains are told apart by it."""
    return bytes(imagecodecs.jpeg8_encode(rgb, level=QUALITY, subsampling="444"))
