"""What is left on disk for one image: a folder with labels.zarr, its exports, and run.json that tells the story."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.errors import RequestError
from tiling import ImageError, Size, View, open_image, storage
from tiling.disk import remove
from tiling.exports import FILES
from tiling.labels import Labels
from tiling.readers import ENDINGS
from tiling.readers.array import ZARR_FILES
from tiling.readers.dicom import series_files
from tiling.readers.placed import beside
from tiling.readers.raster import files_of
from veca_core.card import first_problem

RUN: Final = "run.json"
LABELS: Final = "labels.zarr"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageRecord(_Part):
    """The image as it was found."""

    path: str
    kind: str
    size: tuple[int, int]
    """(height, width) of level 0."""
    bands: tuple[str, ...]
    dtype: str
    spacing: str | None = None
    """As the file says it, like '0.499 um/px'."""
    fingerprint: str
    """Changes when the file does."""
    chosen: tuple[str, ...] = ()
    """Bands that the user chose, as they were asked for; empty: all."""


class DamageRecord(_Part):
    """A tile of the image that could not be decoded, and is no data in the result."""

    level: int
    box: tuple[int, int, int, int]
    """Top row, left column, height and width in pixels of the level."""
    reason: str


class ModelRecord(_Part):
    """The model that was used."""

    name: str
    digest: str
    """sha256 of its weights and card."""


class GridRecord(_Part):
    """The pixel grid of the result."""

    size: tuple[int, int]
    spacing: str | None = None
    transform: tuple[float, float, float, float, float, float]
    """a, b, c, d, e, f: world x = a column + b row + c, world y = d column + e row + f."""
    note: str
    """How the image was read."""


class PlanRecord(_Part):
    """What was chosen, and why."""

    cores: int
    window: int
    overlap: int
    batch: int
    block: int
    device: str
    precision: str
    memory: int
    """Bytes that the run was allowed."""
    predicted: int
    """Bytes that it was expected to need at its peak."""
    reason: str
    chunk: int = 0
    """Tokens that the encoder worked on at once; 0: not recorded."""
    seconds: float | None = None
    """That the network was expected to take, where time was bounded."""
    host: int = 0
    """Bytes expected of the machine's memory, where another device was bound."""
    host_memory: int = 0
    """Bytes that were free to take of it."""


class SeamRecord(_Part):
    """Shares of pairs of neighbouring pixels that differ in class: alike where windows leave no seam."""

    across: float
    """Of pairs that a window's border lies between."""
    elsewhere: float


class RunRecord(_Part):
    """run.json, whole."""

    format: Literal["veca-run/1"] = "veca-run/1"
    image: ImageRecord
    model: ModelRecord
    plan: PlanRecord
    grid: GridRecord
    request: str = ""
    """Of input, model and wishes together: names what was asked for."""
    fingerprint: str
    """Of input, model, plan and options together: names this run."""
    windows: int
    """Windows of the grid."""
    blocks: int
    resumed_blocks: int
    """Blocks that an earlier, interrupted run had finished."""
    seconds: dict[str, float]
    """Wall-clock time of the parts of the run."""
    shares: dict[str, float] = {}
    """Of the time that predicting took: 'read', waiting for pixels; 'compute'; 'write', waiting for what is written."""
    steps_down: tuple[str, ...] = ()
    """What was given up because memory ran out, a line each."""
    seams: SeamRecord | None = None
    """None where no window's border lies between two pixels of data."""
    peak_memory: int
    """Largest resident size of this process, in bytes."""
    outputs: tuple[str, ...]
    """Files and folders of the result, by name."""
    exports: tuple[str, ...] = ()
    """What was asked for beside the labels."""
    partial: tuple[str, ...] = ()
    """Of these, what `veca convert` was asked to simplify, or to leave regions out of."""
    warnings: tuple[str, ...]
    damage: tuple[DamageRecord, ...] = ()
    versions: dict[str, str]

    @property
    def whole(self) -> set[str]:
        """Exports that give the labels as they are."""
        return set(self.exports) - set(self.partial)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A finished result."""

    folder: Path
    run: RunRecord

    @property
    def complete(self) -> bool:
        """Whether all its files are still there, those within its labels too."""
        try:
            self.labels()
        except ImageError:
            return False
        return all((self.folder / name).exists() for name in self.run.outputs)

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Reads run.json; raises RequestError where the folder is no finished result."""
        try:
            return cls(folder, RunRecord.model_validate_json((folder / RUN).read_bytes()))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RequestError(f"{folder} is no finished result: it has no {RUN}") from error
        except ValidationError as error:
            raise RequestError(f"{folder / RUN}: {first_problem(error)}") from error

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def preview(self) -> Path | None:
        """preview.png, where it was made."""
        path = self.folder / "preview.png"
        return path if path.is_file() else None

    @property
    def tags(self) -> dict[str, str]:
        """What every export says about where it came from."""
        run = self.run
        versions = run.versions.get("veca", "")
        return export_tags(run.model.name, run.model.digest, run.plan.cores, run.fingerprint, versions)

    def labels(self) -> Labels:
        """The label image."""
        return Labels.open(self.folder / LABELS)

    def image(self) -> View | None:
        """The image on the result's grid; None where the file is gone or changed."""
        try:
            if image_fingerprint(self.run.image.path) != self.run.image.fingerprint:
                return None
            source = open_image(self.run.image.path, bands=self.run.image.chosen, strict=False)
            return View.sized(source, Size(*self.run.grid.size))
        except (ImageError, OSError):
            return None

    def areas(self) -> list[dict[str, str]]:
        """The rows of areas.csv, or none where it was not made."""
        path = self.folder / "areas.csv"
        if not path.is_file():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


def export_tags(model: str, digest: str, cores: int, run: str, veca: str) -> dict[str, str]:
    """What every export says about where it came from."""
    return {
        "VECA_MODEL": model,
        "VECA_MODEL_SHA256": digest,
        "VECA_CORES": str(cores),
        "VECA_RUN": run,
        "VECA_VERSION": veca,
    }


def find_bundles(folder: Path) -> Iterator[Bundle]:
    """Every finished result in a folder or below it, by name."""
    for run in sorted(folder.rglob(RUN)):
        yield Bundle.open(run.parent)


def write_run(folder: Path, record: RunRecord) -> None:
    """Writes run.json by a rename: with it, a result is finished."""
    text = json.dumps(record.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False) + "\n"
    partial = folder / f".{RUN}.{os.getpid()}"
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    partial.replace(folder / RUN)


def remove_result(folder: Path) -> None:
    """Removes what a finished result holds beside its labels, run.json last; whatever else lies there is left alone."""
    for name in FILES:
        remove(folder / name)
    (folder / RUN).unlink(missing_ok=True)


def image_fingerprint(path: str) -> str:
    """Names, sizes and times of change of the files that make an image, as text; unique for what is no file.

    The files are the image itself, all of a folder's, what a VRT refers to, the sidecars that GDAL reads, the folder of
    a MIRAX slide and the series of a DICOM one.
    """
    path = storage.restored(path)
    if storage.is_url(path):
        parts = [f"{name}:{storage.stamp(name)}" for name in _stored_at(path)]
        return f"{path}:{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()}"
    place = Path(path)
    if not place.exists():
        return f"{path}:{uuid.uuid4()}"
    files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else image_files(place)
    parts = [f"{file.resolve()}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]
    return f"{place.resolve()}:{hashlib.sha256(chr(10).join(parts).encode(errors='backslashreplace')).hexdigest()}"


def _stored_at(path: str) -> list[str]:
    """The files behind an address: itself, or what describes the Zarr array there."""
    return [path] if storage.exists(path) else [n for n in (f"{path}/{z}" for z in ZARR_FILES) if storage.exists(n)]


def image_files(path: Path) -> list[Path]:
    """The files that make an image of one file: itself, its sidecars and companions, headers, what a VRT refers to."""
    files = [path, *beside(str(path))]
    if path.suffix.lower() == ".mrxs":
        files += sorted(file for file in path.with_suffix("").glob("*") if file.is_file())
    if path.suffix.lower() == ".dcm":
        files += [file for file in series_files(str(path)) if file != path]
    if not path.name.lower().endswith(ENDINGS):
        files += [Path(name) for name in files_of(str(path))]
    return files
