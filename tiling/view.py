"""The image as the model sees it: a grid of pixels of the model's spacing, read from the nearest level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tiling.errors import ImageError
from tiling.geometry import Box, Size
from tiling.georef import Georef, Spacing
from tiling.resample import Taps, resample, resample_masked, to_dtype
from tiling.source import Source
from tiling.validity import filled

TOLERANCE: Final = 1.1
"""A level whose pixels are within this factor of the wanted size is read as it is."""
ANOTHER_WORLD: Final = 100.0
"""Pixels that differ by more than this factor do not show the same kind of thing: a satellite image and a slide."""

LARGEST: Final = 2**40
"""Pixels of a grid that is still worked through; a header of a few bytes may claim more than any disk holds."""

_AT_ONCE = 2**24
"""Source pixels resampled in one go; a box that needs more is read in parts."""


@dataclass(frozen=True)
class View:
    """A virtual pixel grid over a source, at a spacing. It spans the image exactly, whatever its size.

    Its size is that of level 0 divided by the wanted step, rounded; its step is then level 0 divided by its size, so
    that the first pixel's corner is the image's first corner and the last one's the last. Pickles as its source does.
    """

    source: Source
    level: int
    """The level that is read."""
    scale: tuple[float, float]
    """(y, x): level-0 pixels per pixel of this grid."""
    size: Size
    georef: Georef
    """Of this grid."""
    spacing: Spacing | None
    """Of a pixel of this grid; None where nobody says."""
    resampled: bool
    """Whether the level's pixels are resampled; if not, this grid is the level's own."""
    note: str
    """What was chosen, in one line."""

    def __post_init__(self) -> None:
        if self.size.pixels > LARGEST:
            raise ImageError(
                f"{self.source.path} is {self.size}: more than can be worked through at once; "
                "cut it in parts (gdal_translate -srcwin ...), or read it at a coarser --spacing"
            )

    @classmethod
    def open(cls, source: Source, spacing: Spacing | None = None, stated: Spacing | None = None) -> View:
        """The view at `spacing`, or at the source's own pixels where that is None.

        `stated` is the size of a level-0 pixel, where the file does not say it or says it wrongly. The level read is
        the one within 10 % of `spacing` in y and x, as it is; or else the coarsest that is not coarser, resampled; or
        level 0, enlarged, where even that is coarser. Raises ImageError where a spacing is wanted and neither the file
        nor `stated` tells the size of a pixel, or where that and `spacing` are more than a factor of 100 apart.
        """
        full = source.levels[0].size
        native = stated or source.georef.spacing(full)
        georef = _placed(source, stated)
        if spacing is None:
            return cls(source, 0, (1.0, 1.0), full, georef, native, False, _note(source, native, 0, None))
        if native is None:
            raise ImageError(
                f"{source.path} does not say how large its pixels are and the model expects {spacing}; state it with "
                f"--spacing, e.g. --spacing {_example(spacing)}, or use --spacing native to read the pixels as they are"
            )
        step = _step(source, native, spacing)
        level, resampled = _choose(source, step)
        size = Size(*(max(1, round(n / s)) for n, s in zip((full.height, full.width), step, strict=True)))
        size = size if resampled else source.levels[level].size
        scale = full.height / size.height, full.width / size.width
        actual = Spacing(native.y * scale[0], native.x * scale[1], native.unit)
        note = _note(source, native, level, spacing if resampled else None)
        return cls(source, level, scale, size, georef.scaled(*scale), actual, resampled, note)

    @classmethod
    def sized(cls, source: Source, size: Size) -> View:
        """The view of this size: that of a run again, whatever spacing it was told."""
        full = source.levels[0].size
        scale = full.height / size.height, full.width / size.width
        level, _ = _choose(source, scale)
        resampled = source.levels[level].size != size
        georef, native = source.georef.scaled(*scale), source.georef.spacing(full)
        actual = None if native is None else Spacing(native.y * scale[0], native.x * scale[1], native.unit)
        note = _note(source, native, level, actual if resampled else None)
        return cls(source, level, scale, size, georef, actual, resampled, note)

    def read(self, box: Box) -> NDArray[Any]:
        """(H, W, bands) in the source's dtype; ImageError for a box that leaves the view.

        The same pixels whatever box they are read with. Invalid pixels do not bleed into valid ones; those that have no
        valid source pixel are 0 where the view is resampled, and as the file holds them where it is not.
        """
        self._check_inside(box)
        return self._pixels(box)[0] if self.resampled else self.source.read(box, self.level)

    def valid(self, box: Box) -> NDArray[np.bool_]:
        """(H, W): True where at least half of the pixel is data; ImageError for a box that leaves the view."""
        self._check_inside(box)
        return self._valid(box) if self.resampled else self.source.valid(box, self.level)

    def blank(self, box: Box) -> bool:
        """Whether it is known without reading that nothing in a box is data; it may leave the view."""
        common = self.size.box.intersect(box)
        if common is None:
            return True
        if not self.resampled:
            return self.source.blank(common, self.level)
        y, x = self._taps(common)
        return self.source.blank(Box.between(y.first, x.first, y.stop, x.stop), self.level)

    def window(self, box: Box, fill: Sequence[float] | None = None) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Pixels (H, W, bands) and validity (H, W) of a box that may leave the view, but must touch it.

        Outside, pixels mirror the image at its edge (NumPy's 'symmetric') and are never valid. With `fill`, one value a
        band, pixels without data hold that, so that a -9999 or a NaN never reaches a network.
        """
        if self.size.box.intersect(box) is None:
            raise ImageError(f"{self.source.path}: {box} does not touch the image, which is {self.size}")
        rows, inside_rows = _mirror(box.y, box.bottom, self.size.height)
        columns, inside_columns = _mirror(box.x, box.right, self.size.width)
        core = Box.between(int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1)
        pixels, valid = self._pixels(core) if self.resampled else (self.read(core), self.valid(core))
        if fill is not None:
            pixels = filled(pixels, valid, fill)
        if core != box:
            where = np.ix_(rows - core.y, columns - core.x)
            pixels, valid = pixels[where], valid[where] & (inside_rows[:, None] & inside_columns)
        return pixels, valid

    def _check_inside(self, box: Box) -> None:
        if not self.size.box.contains(box):
            raise ImageError(f"{self.source.path}: {box} leaves the view, which is {self.size}; use window() to pad")

    def _taps(self, box: Box) -> tuple[Taps, Taps]:
        level = self.source.levels[self.level].size
        y = Taps.at(box.y, box.bottom, level.height / self.size.height, level.height)
        x = Taps.at(box.x, box.right, level.width / self.size.width, level.width)
        return y, x

    def _pixels(self, box: Box) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Resampled pixels and their validity, in parts where the source region is large."""
        y, x = self._taps(box)
        region = Box.between(y.first, x.first, y.stop, x.stop)
        if region.pixels > _AT_ONCE and box.pixels > 1:
            axis, halves = _halves(box)
            parts = [self._pixels(half) for half in halves]
            return np.concatenate([p for p, _ in parts], axis), np.concatenate([v for _, v in parts], axis)
        values, valid = resample_masked(
            self.source.read(region, self.level), self.source.valid(region, self.level), y, x
        )
        return to_dtype(values, self.source.dtype), valid

    def _valid(self, box: Box) -> NDArray[np.bool_]:
        y, x = self._taps(box)
        region = Box.between(y.first, x.first, y.stop, x.stop)
        if region.pixels > _AT_ONCE and box.pixels > 1:
            axis, halves = _halves(box)
            return np.concatenate([self._valid(half) for half in halves], axis)
        valid = self.source.valid(region, self.level)
        if valid.all():
            return np.ones((box.height, box.width), dtype=np.bool_)
        return np.asarray(resample(valid[..., None].astype(np.float32), y, x)[..., 0] >= 0.5)


def _placed(source: Source, stated: Spacing | None) -> Georef:
    """Level 0's place: the file's, or micrometres where a user states them for a file without a CRS."""
    if stated is not None and stated.unit == "um" and source.georef.unit != "crs":
        return source.georef.restated(stated)
    return source.georef


def _step(source: Source, native: Spacing, spacing: Spacing) -> tuple[float, float]:
    """(y, x): level-0 pixels per pixel of `spacing`."""
    y, x = (want / have for want, have in zip(spacing.metres, native.metres, strict=True))
    if not all(1 / ANOTHER_WORLD <= step <= ANOTHER_WORLD for step in (y, x)):
        raise ImageError(
            f"{source.path} has pixels of {native} and the model expects {spacing}, more than a factor of "
            f"{ANOTHER_WORLD:g} apart; choose a model for such images, or state the true pixel size with --spacing"
        )
    return y, x


def _choose(source: Source, step: tuple[float, float]) -> tuple[int, bool]:
    """The level to read for pixels of `step` level-0 pixels, and whether to resample it."""

    def off(level: int) -> float:
        ratios = [have / want for have, want in zip(source.levels[level].scale, step, strict=True)]
        return max(max(r, 1 / r) for r in ratios)

    levels = range(len(source.levels))
    nearest = min(levels, key=off)
    if off(nearest) <= TOLERANCE:
        return nearest, False
    finer = [i for i in levels if all(have <= want for have, want in zip(source.levels[i].scale, step, strict=True))]
    return max(finer, default=0), True


def _note(source: Source, native: Spacing | None, level: int, resampled: Spacing | None) -> str:
    if native is None:
        return "read at level 0 as it is; the file does not say how large its pixels are"
    y, x = source.levels[level].scale
    read = f"read at level {level} ({Spacing(native.y * y, native.x * x, native.unit)})"
    return f"{read}, resampled to {resampled}" if resampled else read


def _example(spacing: Spacing) -> str:
    return "0.25um" if spacing.unit == "um" else f"{spacing.y:g}m"


def _halves(box: Box) -> tuple[int, tuple[Box, Box]]:
    """The axis of the longer side, and the box cut across it."""
    if box.height >= box.width:
        middle = box.y + box.height // 2
        return 0, (
            Box.between(box.y, box.x, middle, box.right),
            Box.between(middle, box.x, box.bottom, box.right),
        )
    middle = box.x + box.width // 2
    return 1, (
        Box.between(box.y, box.x, box.bottom, middle),
        Box.between(box.y, middle, box.bottom, box.right),
    )


def _mirror(start: int, stop: int, length: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """For positions start..stop-1 of an axis: the position in 0..length-1 that each shows, and whether it is that."""
    at = np.arange(start, stop)
    folded = at % (2 * length)
    return np.minimum(folded, 2 * length - 1 - folded), (at >= 0) & (at < length)
