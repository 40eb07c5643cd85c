"""What a viewer shows of a folder of results beside pixels: the results, their areas and their files."""

from __future__ import annotations

import csv
import heapq
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from pipelines.bundle import RUN, Bundle
from pipelines.errors import USER_ERRORS, RequestError

FILES: Final[dict[str, str]] = {
    "mask.tif": "image/tiff",
    "regions.geojson": "application/geo+json",
    "corrections.geojson": "application/geo+json",
    "regions.gpkg": "application/geopackage+sqlite3",
    "regions.csv": "text/csv",
    "areas.csv": "text/csv",
    "regions.parquet": "application/vnd.apache.parquet",
    "preview.png": "image/png",
    "probability.tif": "image/tiff",
    "uncertainty.tif": "image/tiff",
}
"""Files of a result that a person may want to keep, and what they are."""


@dataclass(frozen=True, slots=True)
class Result:
    """One result in a folder: finished and readable, or damaged."""

    name: str
    """Its place in the folder."""
    bundle: Bundle | None
    """None where it is damaged."""
    problem: str = ""
    """What is wrong with a damaged one, in one line."""


@dataclass(frozen=True, slots=True)
class AreaRow:
    """One row of areas.csv: a class, or 'total', or 'no data'."""

    name: str
    value: int | None
    """Class value; None for the total."""
    pixels: int
    area: float | None
    """In `unit`."""
    unit: str | None
    """'um2' or 'm2'; None where nothing is known about the size of a pixel."""
    share: float | None
    """Of the valid area, 0..1."""


@dataclass(frozen=True, slots=True)
class RegionRow:
    """One row of regions.csv: a connected region."""

    name: str
    """Of its class."""
    pixels: float
    area: float | None
    """In um2 or m2."""
    perimeter: float | None
    """In um or m."""
    world: tuple[float, float]
    """(x, y) of its centroid, as the image's georeference counts."""


def list_results(folder: Path) -> list[Result]:
    """Every result in a folder or below it, by name, damaged ones too. Links are not followed out of the folder."""
    root = folder.resolve()
    return [_result(root, run.parent, _changed(run)) for run in _find_runs(root)]


def read_areas(folder: Path) -> list[AreaRow]:
    """The rows of areas.csv, or none where it was not made; raises RequestError where it is damaged."""
    path = folder / "areas.csv"
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_area_row(row) for row in csv.DictReader(file)]
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{path} is damaged; segment the image again") from error


def read_regions(folder: Path, most: int, only: str | None = None) -> list[RegionRow]:
    """The largest regions of regions.csv, of one class where that is named; raises RequestError where it is damaged.

    None where the file was not made. Memory does not grow with the file.
    """
    path = folder / "regions.csv"
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = (_region_row(row) for row in csv.DictReader(file))
            wanted = (row for row in rows if only is None or row.name == only)
            return heapq.nlargest(most, wanted, key=lambda row: row.pixels)
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{path} is damaged; make the regions again") from error


def list_files(folder: Path) -> list[Path]:
    """Those of FILES that lie in the folder of a result and do not lead out of it."""
    found = (folder / name for name in FILES)
    return [path for path in found if path.is_file() and path.resolve().is_relative_to(folder.resolve())]


def _find_runs(root: Path) -> Iterator[Path]:
    """By name. Does not look into label images, which hold thousands of files, nor into hidden folders."""
    for place, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and ".zarr" not in name)
        if RUN in files:
            yield Path(place) / RUN


@lru_cache(maxsize=4096)
def _result(root: Path, folder: Path, _state: str) -> Result:
    name = folder.relative_to(root).as_posix() if folder != root else root.name
    try:
        outside = next((path for path in sorted(folder.iterdir()) if not path.resolve().is_relative_to(root)), None)
        if outside:
            return Result(name, None, f"{outside} is a link that leads out of the folder; it is not followed")
        return Result(name, Bundle.open(folder))
    except (*USER_ERRORS, OSError, UnicodeDecodeError) as error:
        return Result(name, None, " ".join(str(error).split()))


def _changed(path: Path) -> str:
    """A text that changes when the file, or what lies beside it, does."""
    try:
        return f"{path.stat().st_size} {path.stat().st_mtime_ns} {path.parent.stat().st_mtime_ns}"
    except OSError:
        return "gone"


def _area_row(row: dict[str, str]) -> AreaRow:
    """Raises ValueError, KeyError or TypeError where something is missing or odd."""
    unit = next((unit for unit in ("um2", "m2") if unit in row), None)
    return AreaRow(
        name=row["class"],
        value=int(row["value"]) if row["value"] else None,
        pixels=int(row["pixels"]),
        area=float(row[unit]) if unit and row[unit] else None,
        unit=unit,
        share=float(row["share"]) if row["share"] else None,
    )


def _region_row(row: dict[str, str]) -> RegionRow:
    """Raises ValueError, KeyError or TypeError where something is missing or odd."""
    small = "um" if "um2" in row else "m"
    area, perimeter = row[f"{small}2"], row[f"perimeter_{small}"]
    return RegionRow(
        name=row["class"],
        pixels=float(row["pixels"]),
        area=float(area) if area else None,
        perimeter=float(perimeter) if perimeter else None,
        world=(float(row["x"]), float(row["y"])),
    )
