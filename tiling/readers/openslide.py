"""Slides through OpenSlide: MIRAX and other scanners' formats that no other reader here knows."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import numpy as np
import openslide
from numpy.typing import NDArray

from tiling import storage, validity
from tiling.geometry import Box, Size
from tiling.georef import Georef, Spacing, plausible
from tiling.readers.opened import OpenedImage, level_scale, one_line
from tiling.source import Kind, Level

COARSEST: Final = 64
"""Levels of a bounded slide that are coarser than this are left out: its bounds lie on their pixels' borders."""
CACHE: Final = 64 * 2**20
"""Bytes of decoded tiles that OpenSlide keeps for one slide."""
_TILE: Final = 512
"""Where OpenSlide does not tell the file's tiles, pixels are read in squares of this side."""


class OpenSlideSource(OpenedImage):
    """A slide read with OpenSlide: red, green and blue of 8 bits, valid where it was scanned (alpha above zero).

    A slide that was scanned in parts declares the bounds of what it holds. The image is then these bounds (grown to the
    pixel borders of its coarser levels), and its `georef` keeps their offset from the slide's own origin.
    """

    kind: Kind = "slide"
    bands = ("red", "green", "blue")
    dtype = np.dtype(np.uint8)

    def __init__(self, path: str | os.PathLike[str], *, indexed: bool = False) -> None:
        super().__init__(path, indexed=indexed)
        self._lock = threading.Lock()
        self._slide: openslide.OpenSlide | None = None
        self._last: tuple[Box, int, NDArray[np.uint8]] | None = None
        with one_line(f"{self.path}: cannot be read"):
            self._describe(self._opened())

    @classmethod
    def accepts(cls, path: str) -> bool:
        return path.lower().endswith((".mrxs", ".vms", ".vmu", ".svslide", ".bif")) and not storage.is_url(path)

    @classmethod
    def rescues(cls, path: str) -> bool:
        with suppress(openslide.OpenSlideError, OSError):
            return not storage.is_url(path) and openslide.OpenSlide.detect_format(path) is not None
        return False

    def close(self) -> None:
        """Closes the slide. Reading again re-opens it."""
        with self._lock:
            self._forget()

    @property
    def working_bytes(self) -> int:
        return CACHE + 2 * 4 * self.levels[0].chunk.pixels

    def _describe(self, slide: openslide.OpenSlide) -> None:
        facts = slide.properties
        width, height = slide.dimensions
        declared = declared_bounds(facts, Size(height, width))
        steps = [float(step) for step in slide.level_downsamples]
        kept = [i for i, step in enumerate(steps) if declared is None or step <= COARSEST]
        self._bounds = Size(height, width).box
        if declared is not None:
            self._bounds = on_borders(declared, [steps[i] for i in kept], Size(height, width))
        self._levels, self._steps = kept, [steps[i] for i in kept]
        sizes = [self._level_size(slide.level_dimensions[i], steps[i]) for i in kept]
        chunks = [_tile_size(facts, i, size) for i, size in zip(kept, sizes, strict=True)]
        self.levels = tuple(
            Level(size, chunk, level_scale(sizes[0], size)) for size, chunk in zip(sizes, chunks, strict=True)
        )
        spacing, doubt = stated_spacing(facts)
        base = Georef.pixels() if spacing is None else Georef.micrometres(spacing)
        self.georef = base.shifted(self._bounds.y, self._bounds.x)
        self._notes = tuple(f"{self.name}: {note}" for note in self._remarks(declared, doubt))
        self.provenance = {"format": f"{facts.get('openslide.vendor', 'unknown')} (OpenSlide)"}

    def _remarks(self, declared: Box | None, doubt: str | None) -> Iterator[str]:
        if doubt:
            yield doubt
        if declared is not None:
            y, x = self._bounds.y, self._bounds.x
            yield f"was scanned in part: places count from the slide's origin, {y} px above and {x} px left of it"

    def _level_size(self, dimensions: tuple[int, int], step: float) -> Size:
        """What of a level lies inside the bounds."""
        width, height = dimensions
        top, left = round(self._bounds.y / step), round(self._bounds.x / step)
        bottom = min(height, max(top + 1, round(self._bounds.bottom / step)))
        right = min(width, max(left + 1, round(self._bounds.right / step)))
        return Size(bottom - top, right - left)

    def _opened(self) -> openslide.OpenSlide:
        with self._lock:
            if self._slide is None:
                slide = openslide.OpenSlide(self.path)
                slide.set_cache(openslide.OpenSlideCache(CACHE))
                self._slide, self._closer = slide, weakref.finalize(self, slide.close)
            return self._slide

    def _forget(self) -> None:
        if self._slide is not None:
            self._slide, self._last = None, None
            self._closer()

    def _read(self, box: Box, level: int) -> NDArray[Any]:
        return np.ascontiguousarray(self._rgba(box, level)[..., :3])

    def _valid(self, box: Box, level: int) -> NDArray[np.bool_]:
        return validity.opaque(self._rgba(box, level)[..., 3])

    def _rgba(self, box: Box, level: int) -> NDArray[np.uint8]:
        """(H, W, 4); the last box is kept, since its validity is asked for right after its pixels."""
        last = self._last
        if last is not None and last[:2] == (box, level):
            return last[2]
        step = self._steps[level]
        x, y = self._bounds.x + round(box.x * step), self._bounds.y + round(box.y * step)
        try:
            image = self._opened().read_region((x, y), self._levels[level], (box.width, box.height))
        except openslide.OpenSlideError:
            self.close()  # a slide that failed once answers nothing but this error from then on
            raise
        pixels = np.asarray(image)
        self._last = box, level, pixels
        return pixels


def declared_bounds(facts: Mapping[str, str], full: Size) -> Box | None:
    """The part of a slide that was scanned, in level-0 pixels; None where that is all of it, or is not said."""
    try:
        y, x, height, width = (round(float(facts[f"openslide.bounds-{n}"])) for n in ("y", "x", "height", "width"))
        bounds = Box(y, x, height, width).intersect(full.box)
    except (KeyError, ValueError):
        return None
    return None if bounds is None or bounds == full.box else bounds


def on_borders(bounds: Box, steps: list[float], full: Size) -> Box:
    """Bounds grown to where the pixels of every level begin, and cut at the slide's edge.

    Then a level's pixel (i, j) covers level-0 pixels from step * i and step * j on, exactly. Steps that are no whole
    numbers have no common borders; bounds then stay as they are.
    """
    whole = [round(step) for step in steps]
    if any(abs(step - near) > 1e-3 * near for step, near in zip(steps, whole, strict=True)):
        return bounds
    step = int(np.lcm.reduce(whole)) if whole else 1
    top, left = bounds.y // step * step, bounds.x // step * step
    bottom, right = -(-bounds.bottom // step) * step, -(-bounds.right // step) * step
    return Box.between(top, left, min(bottom, full.height), min(right, full.width))


def stated_spacing(facts: Mapping[str, str]) -> tuple[Spacing | None, str | None]:
    """The size of a level-0 pixel and None; or None and, where the slide says something unusable, why."""
    try:
        y, x = (float(facts[f"openslide.mpp-{axis}"]) for axis in "yx")
    except (KeyError, ValueError):
        return None, None
    return plausible(y, x)


def _tile_size(facts: Mapping[str, str], level: int, size: Size) -> Size:
    try:
        height, width = (int(facts[f"openslide.level[{level}].tile-{side}"]) for side in ("height", "width"))
    except (KeyError, ValueError):
        height = width = _TILE
    return Size(min(height, size.height), min(width, size.width))
