"""What people correct in a mask: strokes and shapes in a journal beside the result, which itself is never touched."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from rasterio.features import rasterize

from pipelines.errors import RequestError
from tiling import NODATA, Box, LabelClass, Size
from tiling.labels import Labels
from veca_core.card import first_problem

RECORD: Final = "corrections.json"
STROKES: Final = "strokes.jsonl"
ENDING: Final = ".corrected"
"""The folder of a result's corrections is called like the result's own, with this at the end."""
_ROUND: Final = 16
"""Corners of a quarter of a brush's circle."""
_MOST_POINTS: Final = 20_000


class CorrectionsRecord(BaseModel):
    """corrections.json: which mask is corrected."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["veca-corrections/1"] = "veca-corrections/1"
    mask: str
    """Name of the folder beside this one that holds the mask."""
    image: str
    """Path of the image."""
    fingerprint: str
    """Of the image's file."""
    model: str
    cores: int
    classes: tuple[tuple[int, str], ...]
    """(value, name) of what can be painted."""
    size: tuple[int, int] | None = None
    """(height, width) of the mask: strokes count in its pixels."""

    @classmethod
    def read(cls, folder: Path) -> CorrectionsRecord:
        """Raises RequestError where the folder holds none."""
        try:
            return cls.model_validate_json((folder / RECORD).read_bytes())
        except OSError as error:
            raise RequestError(f"{folder} holds no corrections: it has no {RECORD}") from error
        except ValidationError as error:
            raise RequestError(f"{folder / RECORD}: {first_problem(error)}") from error


@dataclass(frozen=True)
class Stroke:
    """One movement of a brush, or one filled shape; a later one covers those before it."""

    value: int | None
    """Class value, or 255 for no data; None gives back what the mask says."""
    radius: float
    """Of the brush, in pixels of the mask; 0: the points are the corners of a filled shape."""
    points: tuple[tuple[float, float], ...]
    """(y, x) in pixels of the mask."""

    def __post_init__(self) -> None:
        if self.value is not None and not 0 <= self.value <= NODATA:
            raise RequestError(f"a stroke has a class value 0..{NODATA}, or none, got {self.value}")
        numbers = np.asarray(self.points, np.float64)
        if not (0 <= self.radius < 1e5 and 1 <= len(self.points) <= _MOST_POINTS and np.isfinite(numbers).all()):
            raise RequestError(f"a stroke has a radius and 1 to {_MOST_POINTS:,} points, got {len(self.points)}")
        if self.radius == 0 and (len(self.points) < 3 or self.shape.is_empty):
            raise RequestError("a filled shape has at least three corners, and holds something")

    @cached_property
    def shape(self) -> Any:
        """What it covers, as a shapely geometry of (x, y) in pixels of the mask."""
        places = [(x, y) for y, x in self.points]
        if self.radius == 0:
            return filled(places)
        # Piece by piece: around a line that comes back over itself, GEOS also fills what it encloses.
        pieces = [shapely.LineString(ends) for ends in pairwise(places) if ends[0] != ends[1]]
        return shapely.union_all(shapely.buffer(pieces or [shapely.Point(places[0])], self.radius, quad_segs=_ROUND))

    @property
    def box(self) -> Box:
        """The pixels that it may touch; they may lie beyond the mask's edge."""
        left, top, right, bottom = (int(n) for n in (*np.floor(self.shape.bounds[:2]), *np.ceil(self.shape.bounds[2:])))
        return Box.between(top, left, max(bottom, top + 1), max(right, left + 1))


def filled(corners: Sequence[tuple[float, float]]) -> Any:
    """What an outline of (x, y) corners holds by the even-odd rule, as the browser fills it, however it crosses itself.

    The faces between its sides that an odd number of them surrounds; sides that run twice surround nothing.
    """
    polygon = shapely.Polygon(corners)
    if polygon.is_valid:
        return shapely.multipolygons([polygon])
    ends = np.asarray([*corners, corners[0]], np.float64)
    sides = shapely.union_all(shapely.linestrings(np.stack([ends[:-1], ends[1:]], axis=1)))
    faces = shapely.get_parts(shapely.polygonize(shapely.get_parts(sides)))
    kept = []
    for face in faces:
        x, y = shapely.get_coordinates(shapely.point_on_surface(face))[0]
        (ax, ay), (bx, by) = ends[:-1].T, ends[1:].T
        crossed = (ay <= y) != (by <= y)
        at = ax[crossed] + (y - ay[crossed]) / (by - ay)[crossed] * (bx - ax)[crossed]
        if np.count_nonzero(at > x) % 2:
            kept.append(face)
    return shapely.MultiPolygon(shapely.get_parts(shapely.union_all(kept)).tolist())


class Corrections:
    """The strokes over one mask. Each is on the disk before `add` returns; safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        """Opens those in a folder. Raises RequestError where they are damaged."""
        self.folder = folder
        self.record = CorrectionsRecord.read(folder)
        self._lock = threading.Lock()
        self._known = -1
        self._strokes: list[Stroke] = []
        self._bounds = np.empty((0, 4))
        self.strokes  # noqa: B018 - reads them

    @classmethod
    def begin(
        cls,
        mask: Path,
        image: str,
        fingerprint: str,
        model: str,
        cores: int,
        classes: Sequence[LabelClass],
        size: Size | None = None,
    ) -> Path:
        """The folder for corrections of the mask in the folder `mask`, made where there is none yet."""
        folder = mask.with_name(mask.name + ENDING)
        if not (folder / RECORD).is_file():
            record = CorrectionsRecord(
                mask=mask.name, image=image, fingerprint=fingerprint, model=model, cores=cores,
                classes=tuple((c.value, c.name) for c in classes), size=(size.height, size.width) if size else None,
            )  # fmt: skip
            folder.mkdir(exist_ok=True)
            (folder / STROKES).touch()
            partial = folder / f".{RECORD}.{os.getpid()}"
            partial.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8", errors="backslashreplace")
            partial.replace(folder / RECORD)
        return folder

    @property
    def mask(self) -> Path:
        """The folder of the mask that is corrected."""
        return self.folder.parent / self.record.mask

    def check(self, labels: Labels) -> None:
        """Raises RequestError where the mask has other classes or pixels by now than those that were painted."""
        known, painted = {c.value: c.name for c in labels.classes}, dict(self.record.classes)
        if known != painted:
            raise RequestError(
                f"{self.folder} corrects a mask with the classes {list(painted.values())}, but "
                f"{self.mask} has {list(known.values())} now; move the corrections elsewhere"
            )
        if self.record.size is not None and Size(*self.record.size) != labels.size:
            raise RequestError(
                f"{self.folder} corrects a mask of {Size(*self.record.size)}, but {self.mask} is {labels.size} now; "
                "move the corrections elsewhere"
            )

    @property
    def strokes(self) -> list[Stroke]:
        """All that hold, the first one first; what another process wrote is among them."""
        with self._lock:
            self._read()
            return list(self._strokes)

    def add(self, stroke: Stroke) -> None:
        """Raises RequestError for a class that the mask does not have, OSError where it cannot be written."""
        known = [value for value, _ in self.record.classes]
        if stroke.value is not None and stroke.value != NODATA and stroke.value not in known:
            raise RequestError(f"the mask has the classes {known}, and no class {stroke.value}")
        points = [[round(y, 2), round(x, 2)] for y, x in stroke.points]
        line = {"value": stroke.value, "radius": round(stroke.radius, 3), "points": points}
        with self._lock:
            self._read()
            self._append(line)
            self._set([*self._strokes, _stroke(line)])

    def undo(self) -> Stroke | None:
        """Takes the last stroke back, and gives it; None where there is none."""
        with self._lock:
            self._read()
            if not self._strokes:
                return None
            *others, last = self._strokes
            self._append({"undo": True})
            self._set(others)
            return last

    def burn(self, values: NDArray[np.uint8], box: Box, level: int = 0, *, thin: bool = False) -> NDArray[np.uint8]:
        """(h, w) class values of a box of a level with all strokes: a pixel is what its centre was painted last.

        `thin` counts any part of a pixel of a coarser level, so that small strokes show.
        """
        step = 2**level
        with self._lock:
            self._read()
            left, top, right, bottom = self._bounds.T
            near = (left < box.right * step) & (right > box.x * step) & (top < box.bottom * step)
            near &= (bottom > box.y * step) & (np.maximum(right - left, bottom - top) > (0 if thin else step / 2))
            chosen = [self._strokes[i] for i in np.flatnonzero(near)]
        if not chosen:
            return values
        painted = np.full(values.shape, -1, np.int16)
        rasterize(
            [(stroke.shape, -1 if stroke.value is None else stroke.value) for stroke in chosen],
            out=painted,
            all_touched=thin and level > 0,
            transform=Affine(step, 0, box.x * step, 0, step, box.y * step),
        )
        return np.where(painted >= 0, painted, values).astype(np.uint8)

    def _read(self) -> None:
        """Takes what the journal holds by now; the caller has the lock."""
        path = self.folder / STROKES
        if (path.stat().st_size if path.is_file() else 0) != self._known:
            self._set(_parse(path))

    def _append(self, line: dict[str, Any]) -> None:
        text = json.dumps(line | {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}) + "\n"
        path = self.folder / STROKES
        with path.open("r+b" if path.exists() else "w+b") as file:
            whole = _whole_lines(file.read())
            file.seek(whole)  # what a killed process left half-written is written over
            file.truncate()
            file.write(text.encode("ascii"))
            file.flush()
            os.fsync(file.fileno())

    def _set(self, strokes: list[Stroke]) -> None:
        path = self.folder / STROKES
        self._bounds = shapely.bounds(np.array([s.shape for s in strokes], dtype=object)).reshape(-1, 4)
        self._strokes = strokes
        self._known = path.stat().st_size if path.is_file() else 0


def _parse(path: Path) -> list[Stroke]:
    """Raises RequestError where a whole line is none of ours."""
    data = path.read_bytes() if path.is_file() else b""
    strokes: list[Stroke] = []
    for number, text in enumerate(data[: _whole_lines(data)].splitlines(), 1):
        try:
            line = json.loads(text)
            if line.get("undo"):
                strokes.pop()
            else:
                strokes.append(_stroke(line))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise RequestError(f"{path}: line {number} is no stroke; take it out to go on with the others") from error
    return strokes


def _stroke(line: dict[str, Any]) -> Stroke:
    points = tuple((float(y), float(x)) for y, x in line["points"])
    return Stroke(line["value"], float(line["radius"]), points)


def _whole_lines(data: bytes) -> int:
    """Bytes up to the end of the last whole line."""
    return data.rfind(b"\n") + 1
