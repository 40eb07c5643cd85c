"""The connected regions of a label image, one after the other, with what each measures, in bounded memory."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final, Literal, TypeVar

from tiling.errors import ImageError
from tiling.exports.joining import Joiner, Region
from tiling.exports.outlines import Ring, outlines
from tiling.exports.ruler import AreaUnit, Ruler, measured
from tiling.grid import blocks
from tiling.labels import LabelClass, Labels

T = TypeVar("T")
SIDE: Final = 2048
"""Side of the blocks that are looked at one after the other, in pixels. It changes no exact region."""
_IDS: Final = uuid.UUID("6b7c2c0e-6f0b-5d0e-9a51-0f3a2f1f7c11")
_AT_ONCE: Final = 256
"""Regions, or holes of one, that are measured at once."""
_LENGTHS: Final = {"px": (1.0, "px"), "um": (1.0, "um"), "µm": (1.0, "um"), "mm": (1e3, "um"), "m": (1e6, "um")}
_AREAS: Final = {
    "px": (1.0, "px"), "um2": (1.0, "um2"), "µm2": (1.0, "um2"), "mm2": (1e6, "um2"), "m2": (1e12, "um2"),
    "ha": (1e16, "um2"), "km2": (1e18, "um2"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Amount:
    """A length or an area that a user states, in pixels of the mask or in micrometres."""

    value: float = 0.0
    unit: Literal["px", "um", "um2"] = "px"

    @classmethod
    def length(cls, text: str) -> Amount:
        """Reads '1.5px', '2um' or '0.5m'; raises ValueError for anything else."""
        return cls._parse(text, _LENGTHS, "a length, like 1.5px, 2um or 0.5m")

    @classmethod
    def area(cls, text: str) -> Amount:
        """Reads '10px', '20um2', '100m2' or '1ha'; raises ValueError for anything else."""
        return cls._parse(text, _AREAS, "an area, like 10px, 20um2, 100m2 or 1ha")

    @classmethod
    def _parse(cls, text: str, units: Mapping[str, tuple[float, str]], wanted: str) -> Amount:
        match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([a-zµ]+2?)\s*", text, re.IGNORECASE)
        if not match or match[2].lower() not in units:
            raise ValueError(f"cannot read {text!r} as {wanted}")
        factor, unit = units[match[2].lower()]
        return cls(float(match[1]) * factor, unit)  # type: ignore[arg-type]  # the tables hold these units only


@dataclass(frozen=True, slots=True)
class RegionWishes:
    """How regions are wanted; the defaults give the mask back exactly."""

    tolerance: Amount = Amount()
    """Corners are left out whose triangle with their neighbours is smaller than the square of this."""
    least: Amount = Amount()
    """Regions that are smaller are left out."""
    only: tuple[str, ...] | None = None
    """Names of the classes that are wanted; None for all."""
    objects: Literal["annotation", "detection"] = "annotation"
    """What QuPath makes of them."""
    origin: Literal["slide", "bounds"] = "slide"
    """Where the pixels of a bounded slide are counted from: the slide's own corner, or that of its bounds."""

    @property
    def lossy(self) -> bool:
        """Whether anything is left out or simplified."""
        return bool(self.tolerance.value or self.least.value or self.only is not None)


@dataclass(frozen=True, slots=True)
class MeasuredRegion:
    """One connected region, with its class and what it measures."""

    region: Region
    label: LabelClass
    id: uuid.UUID
    """The same for the same region of the same run, whatever it is written to."""
    pixels: float
    """Of the mask; a half number where corners were left out."""
    centroid: tuple[float, float]
    """(y, x) in pixels of the mask; a region in the shape of a C has it outside."""
    area: float | None
    """In `unit`; None where nothing is known about the size of a pixel."""
    perimeter: float | None
    """In micrometres or metres, holes too, along the sides of pixels."""
    unit: AreaUnit | None

    @property
    def rings(self) -> Iterator[Ring]:
        """The shell, then the holes, from the file where they lie."""
        yield self.region.shell
        yield from self.region.holes


def find_regions(labels: Labels, scratch: Path, wishes: RegionWishes | None = None) -> Iterator[MeasuredRegion]:
    """All regions, each as soon as it is whole; `scratch` is a folder for what waits. Reads level 0 once.

    A region hangs together through pixels' sides, and is valid as a polygon: holes are holes. Drawn again in any order
    they give the mask, unless the wishes say otherwise. Raises
    ImageError for wishes that this image cannot fulfil.
    """
    wishes = wishes or RegionWishes()
    measure = _Measure.of(labels, wishes)
    tolerance = _pixels(wishes.tolerance, labels)
    with TemporaryFile(dir=scratch, prefix=".rings-") as spool:
        joiner = Joiner(labels.size, spool, exact=not tolerance)
        for box in blocks(labels.size, SIDE):
            yield from measure(joiner.add(box, outlines(labels.read(box), box, tolerance)))
        yield from measure(joiner.finish())


@dataclass(frozen=True, slots=True)
class _Measure:
    """Measures regions, and leaves out those that are not wanted."""

    ruler: Ruler | None
    classes: Mapping[int, LabelClass]
    fingerprint: str
    least: Amount

    @classmethod
    def of(cls, labels: Labels, wishes: RegionWishes) -> _Measure:
        ruler = Ruler.of(labels.georef, labels.size)
        if wishes.least.unit != "px" and ruler is None:
            raise ImageError(
                f"{labels.path}: nothing is known about the size of a pixel; state the least area in pixels, like 10px"
            )
        names = [c.name for c in labels.classes]
        unknown = [name for name in wishes.only or () if name not in names]
        if unknown:
            raise ImageError(f"{labels.path}: there is no class {unknown[0]!r}; the classes are {', '.join(names)}")
        wanted = {c.value: c for c in labels.classes if wishes.only is None or c.name in wishes.only}
        return cls(ruler, wanted, labels.fingerprint, wishes.least)

    def __call__(self, found: Iterable[Region]) -> Iterator[MeasuredRegion]:
        wanted = (region for region in found if region.value in self.classes)
        for some in batched(wanted, _AT_ONCE):
            shells = measured([region.shell for region in some], self.ruler)
            for region, sums in zip(some, shells, strict=True):
                for holes in batched(region.holes, _AT_ONCE):
                    sums += measured(holes, self.ruler).sum(axis=0)
                one = self._measured(region, *sums.tolist())
                if self._is_large(one):
                    yield one

    def _measured(
        self, region: Region, pixels: float, x: float, y: float, area: float, length: float
    ) -> MeasuredRegion:
        label = self.classes[region.value]
        return MeasuredRegion(
            region=region,
            label=label,
            id=uuid.uuid5(_IDS, f"{self.fingerprint} {label.value} {region.shell[0].tolist()}"),
            pixels=pixels,
            centroid=(y / pixels, x / pixels),
            area=area if self.ruler else None,
            perimeter=length if self.ruler else None,
            unit=self.ruler.unit if self.ruler else None,
        )

    def _is_large(self, region: MeasuredRegion) -> bool:
        if self.least.unit == "px":
            return region.pixels >= self.least.value
        return (region.area or 0.0) * (1.0 if region.unit == "um2" else 1e12) >= self.least.value


def _pixels(tolerance: Amount, labels: Labels) -> float:
    """A tolerance in pixels of the mask."""
    if tolerance.unit == "px":
        return tolerance.value
    spacing = labels.georef.spacing(labels.size)
    if spacing is None:
        raise ImageError(
            f"{labels.path}: nothing is known about the size of a pixel; state the tolerance in pixels, like 1.5px"
        )
    um = spacing.to("um")
    return tolerance.value / math.sqrt(um.y * um.x)


def batched(items: Iterable[T], most: int) -> Iterator[tuple[T, ...]]:
    """Tuples of at most so many, in order."""
    left = iter(items)
    while some := tuple(islice(left, most)):
        yield some
