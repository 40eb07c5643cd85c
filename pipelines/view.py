"""What a viewer shows of a folder of results: the results, a picture of one that fits a screen, its areas and files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.bundle import LABELS, RUN, Bundle
from pipelines.errors import USER_ERRORS, RequestError
from tiling import ImageError, Size
from tiling.exports.overlay import coarse_labels, is_background
from tiling.exports.thumbnail import thumbnail
from tiling.labels import Labels

PAPER: Final = 238
"""Grey value of what is no data: light, as glass is."""
FILES: Final[dict[str, str]] = {
    "mask.tif": "image/tiff",
    "areas.csv": "text/csv",
    "preview.png": "image/png",
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
class LegendEntry:
    """What one value of a label image means."""

    value: int
    name: str
    color: tuple[int, int, int]
    """Red, green, blue, 0..255."""
    background: bool
    """Whether it is what lies around the other classes."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A whole image and its mask, pixel on pixel, small enough for a screen."""

    rgb: NDArray[np.uint8] | None
    """(h, w, 3), light grey where there is no data; None where the image cannot be shown."""
    values: NDArray[np.uint8]
    """(h, w) class values; what the legend does not name is no data."""
    legend: tuple[LegendEntry, ...]
    note: str = ""
    """Why there is no image, in one line."""


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


def list_results(folder: Path) -> list[Result]:
    """Every result in a folder or below it, by name, damaged ones too. Links are not followed out of the folder."""
    root = folder.resolve()
    return [_result(root, run.parent, _changed(run)) for run in _find_runs(root)]


def stamp(bundle: Bundle) -> str:
    """Changes when the result or the file of its image does."""
    return f"{bundle.folder} {_changed(bundle.folder / RUN)} {_changed(Path(bundle.run.image.path))}"


def scene(bundle: Bundle, height: int, width: int) -> Scene:
    """The whole result in a picture that fits `height` x `width` pixels, never enlarged.

    Memory is bounded by the picture, whatever the image's size. Raises ImageError or RequestError where the mask
    cannot be read; an image that cannot be read is left out, and the note says why.
    """
    labels = bundle.labels()
    size = _fit(labels.size, height, width)
    rgb, note = _picture(bundle, height, width)
    if rgb is not None and rgb.shape[0] * rgb.shape[1] > size.pixels:
        size = Size(*rgb.shape[:2])
    if rgb is not None and rgb.shape[:2] != (size.height, size.width):
        rgb = np.asarray(Image.fromarray(rgb).resize((size.width, size.height), Image.Resampling.NEAREST))
    legend = tuple(LegendEntry(c.value, c.name, c.color, is_background(c)) for c in labels.classes)
    return Scene(rgb, _values(labels, size), legend, note)


def read_areas(bundle: Bundle) -> list[AreaRow]:
    """The rows of areas.csv, or none where it was not made; raises RequestError where it is damaged."""
    try:
        return [_area_row(row) for row in bundle.areas()]
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{bundle.folder / 'areas.csv'} is damaged; segment the image again") from error


def list_files(bundle: Bundle) -> list[Path]:
    """Those of FILES that the run made."""
    made = (bundle.folder / name for name in FILES if name in bundle.run.outputs)
    return [path for path in made if path.is_file()]


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


def _fit(size: Size, height: int, width: int) -> Size:
    scale = min(1.0, height / size.height, width / size.width)
    return Size(max(1, round(size.height * scale)), max(1, round(size.width * scale)))


def _picture(bundle: Bundle, height: int, width: int) -> tuple[NDArray[np.uint8] | None, str]:
    """((h, w, 3) or None, why it is None)."""
    image = bundle.image()
    if image is None:
        path = bundle.run.image.path
        return None, f"The image {path} is gone or has changed since this result was made: here is the mask alone."
    fitted = _fit(image.size, height, width)
    try:
        rgb, valid = thumbnail(image, max(fitted.height, fitted.width))
    except ImageError as error:
        return None, f"The image cannot be read ({error}): here is the mask alone."
    finally:
        image.source.close()
    return np.where(valid[..., None], rgb, np.uint8(PAPER)), ""


def _values(labels: Labels, size: Size) -> NDArray[np.uint8]:
    try:
        return coarse_labels(labels, size)
    except (ValueError, RuntimeError, OSError) as error:  # what Zarr and its codecs raise for bytes they cannot decode
        reason = " ".join(str(error).split())
        raise RequestError(f"{labels.path.parent / LABELS} is damaged ({reason}); segment the image again") from error


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
