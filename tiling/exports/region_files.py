"""regions.geojson, regions.gpkg, regions.parquet and regions.csv: any of them from one pass over the labels."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Protocol

from tiling.exports.files import printable, replacing
from tiling.exports.geojson import GeoJson
from tiling.exports.regions import MeasuredRegion, RegionWishes, find_regions
from tiling.labels import Labels
from tiling.view import View


class Sink(Protocol):
    """A file that takes regions one by one."""

    def add(self, region: MeasuredRegion) -> None:
        """Takes a region, at once: its holes may lie in a file that changes."""
        ...

    def close(self, *, complete: bool) -> None:
        """Ends the file; where it is not complete it will be thrown away."""
        ...


class Table:
    """regions.csv: a row a region, in the order of the other files, with the same id."""

    def __init__(self, path: Path, labels: Labels, _tags: Mapping[str, str], wishes: RegionWishes) -> None:
        self._image = labels.to_image(from_bounds=wishes.origin == "bounds")
        self._world = labels.georef.transform
        self._names = {c.value: printable(c.name) for c in labels.classes}
        um = labels.georef.unit == "um"
        self._larger = 1e-6 if um else 1e-4
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        measures = ["um2", "mm2", "perimeter_um"] if um else ["m2", "ha", "perimeter_m"]
        self._writer.writerow(["id", "class", "value", "pixels", *measures, "column", "row", "x", "y"])

    def add(self, region: MeasuredRegion) -> None:
        y, x = region.centroid
        column, row = self._image @ (x, y)
        area, length = region.area, region.perimeter
        measures = ["", "", ""] if area is None else [f"{area:.4f}", f"{area * self._larger:.9f}", f"{length:.4f}"]
        pixels = f"{region.pixels:.1f}".removesuffix(".0")
        place = [f"{column:.2f}", f"{row:.2f}", *(f"{c:.10g}" for c in self._world @ (x, y))]
        name = self._names[region.label.value]
        self._writer.writerow([region.id, name, region.label.value, pixels, *measures, *place])

    def close(self, *, complete: bool) -> None:  # noqa: ARG002 - every sink is closed alike
        self._file.close()


def _geo_package(path: Path, labels: Labels, tags: Mapping[str, str], wishes: RegionWishes) -> Sink:
    from tiling.exports.vectors import GeoPackage  # a hundred megabytes of libraries, which only writing needs

    return GeoPackage(path, labels, tags, wishes)


def _geo_parquet(path: Path, labels: Labels, tags: Mapping[str, str], wishes: RegionWishes) -> Sink:
    from tiling.exports.vectors import GeoParquet

    return GeoParquet(path, labels, tags, wishes)


SINKS: Final[dict[str, Callable[[Path, Labels, Mapping[str, str], RegionWishes], Sink]]] = {
    "regions.geojson": GeoJson,
    "regions.gpkg": _geo_package,
    "regions.parquet": _geo_parquet,
    "regions.csv": Table,
}


REGION_FILES: Final = tuple(SINKS)


def write_files(
    labels: Labels, folder: Path, tags: Mapping[str, str], wishes: RegionWishes | None, names: Sequence[str]
) -> list[Path]:
    """Writes these of SINKS from one pass over the labels; all of them appear, or none does."""
    wishes = wishes or RegionWishes()
    with ExitStack() as stack:
        paths = [stack.enter_context(replacing(folder / name)) for name in names]
        sinks = [SINKS[path.name](path, labels, tags, wishes) for path in paths]
        complete = False
        try:
            for region in find_regions(labels, paths[0].parent, wishes):
                for sink in sinks:
                    sink.add(region)
            complete = True
        finally:
            for sink in sinks:
                sink.close(complete=complete)
    return [folder / name for name in names]


class RegionExport(Protocol):
    """An export of regions: like every export, and with wishes about them."""

    def __call__(
        self,
        labels: Labels,
        folder: Path,
        image: View | None,
        tags: Mapping[str, str],
        wishes: RegionWishes | None = None,
        /,
    ) -> list[Path]: ...


def _export(names: Callable[[Labels], Sequence[str]]) -> RegionExport:
    def write(
        labels: Labels, folder: Path, _image: View | None, tags: Mapping[str, str], wishes: RegionWishes | None = None
    ) -> list[Path]:
        return write_files(labels, folder, tags, wishes, names(labels))

    return write


def _usual(labels: Labels) -> list[str]:
    """A table, and what the field opens: QuPath, or a map."""
    return ["regions.gpkg" if labels.georef.crs else "regions.geojson", "regions.csv"]


REGION_EXPORTS: Final[dict[str, RegionExport]] = {
    "regions": _export(_usual),
    "geojson": _export(lambda _: ["regions.geojson"]),
    "geopackage": _export(lambda _: ["regions.gpkg"]),
    "geoparquet": _export(lambda _: ["regions.parquet"]),
}
"""GeoJSON is in pixels of the image, as QuPath wants it; the others are in the labels' CRS."""
