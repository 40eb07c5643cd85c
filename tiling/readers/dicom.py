"""Whole slides in DICOM, through wsidicom: the files of one series, their levels and optical paths."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import UID, VLWholeSlideMicroscopyImageStorage
from wsidicom import WsiDicom
from wsidicom.config import Settings
from wsidicom.errors import WsiDicomNotFoundError
from wsidicom.geometry import Point

from tiling import storage
from tiling.errors import ImageError
from tiling.geometry import Box, Size
from tiling.georef import Georef, plausible
from tiling.readers.opened import OpenedImage, all_but, level_scale, one_line, tiles_of
from tiling.source import Kind, Level

CACHE: Final = 64 * 2**20
"""Bytes of decoded tiles that wsidicom keeps for one slide."""
_HEADER: Final = ("SOPClassUID", "SeriesInstanceUID", "ImageType")


class DicomSource(OpenedImage):
    """A slide in DICOM: the file that is named and those of the same series beside it, or all of a folder.

    Optical paths of one band each (fluorescence) are the bands. Of several focal planes the middle one is read, and
    `warnings` says so. Label and overview are never read, and nothing of the header but what pixels need is kept.
    """

    kind: Kind = "slide"

    def __init__(self, path: str | os.PathLike[str], *, indexed: bool = False) -> None:
        super().__init__(path, indexed=indexed)
        self._lock = threading.Lock()
        """Held while wsidicom opens, reads or closes: two threads in a slide sometimes get each other's frames."""
        self._slide: WsiDicom | None = None
        with one_line(f"{self.path}: cannot be read"):
            self._files = series_files(self.path)
            self._describe(self._opened())

    @classmethod
    def accepts(cls, path: str) -> bool:
        if storage.is_url(path):
            return False
        if Path(path).is_dir():
            return any(_is_dicom(file) for file in sorted(Path(path).iterdir())[:20])
        return _is_dicom(Path(path))

    def close(self) -> None:
        """Closes the files. Reading again re-opens them."""
        with self._lock:
            if self._slide is not None:
                self._slide = None
                self._closer()

    @property
    def working_bytes(self) -> int:
        return 2 * CACHE + super().working_bytes

    def _opened(self) -> WsiDicom:
        """For whoever holds the lock."""
        if self._slide is None:
            settings = Settings(decoded_frame_cache_size=CACHE, encoded_frame_cache_size=CACHE // 4)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of values that pydicom tolerates
                slide = self._open(settings)
            self._slide, self._closer = slide, weakref.finalize(self, slide.close)
        return self._slide

    def _open(self, settings: Settings) -> WsiDicom:
        try:
            return WsiDicom.open(self._files, settings=settings)
        except WsiDicomNotFoundError as error:
            header = pydicom.dcmread(self._files[0], stop_before_pixels=True)
            colours, syntax = header.get("PhotometricInterpretation"), header.file_meta.TransferSyntaxUID.name
            raise ImageError(f"its encoding is not known here (colours {colours}, {syntax}); convert it") from error

    def _describe(self, slide: WsiDicom) -> None:
        levels = sorted(slide.levels, key=lambda level: -level.size.width)
        first = levels[0].default_instance.image_data
        self._level_numbers = [level.level for level in levels]
        self.dtype = np.dtype(first.dtype)
        if self.dtype.kind not in "ui":
            raise ImageError(f"its samples are {self.dtype}; expected integers")
        paths = list(levels[0].optical_paths)
        grey = first.samples_per_pixel == 1
        self._paths = paths if grey else paths[:1]
        names = ("band 1",) if len(paths) == 1 else tuple(f"path {path}" for path in paths)
        self.bands = names if grey else ("red", "green", "blue")
        sizes = [Size(level.size.height, level.size.width) for level in levels]
        tiles = [Size(level.tile_size.height, level.tile_size.width) for level in levels]
        self.levels = tuple(
            Level(size, tile, level_scale(sizes[0], size)) for size, tile in zip(sizes, tiles, strict=True)
        )
        pixel = levels[0].pixel_spacing  # in millimetres
        spacing, doubt = plausible(float(pixel.height) * 1e3, float(pixel.width) * 1e3) if pixel else (None, None)
        self.georef = Georef.pixels() if spacing is None else Georef.micrometres(spacing)
        planes = list(levels[0].focal_planes)
        self._plane = first.default_z
        notes = [doubt] if doubt else []
        if len(planes) > 1:
            notes.append(f"has {len(planes)} focal planes: only that at {self._plane:g} um is read")
        if len(levels[0].instances) > len(levels[0].image_data_map):
            notes.append("has two images of the same place and kind in its series: only one of them is read")
        if not grey and len(paths) > 1:
            notes.append(f"has {len(paths)} optical paths of three bands: only the first is read")
        self._notes = tuple(f"{self.name}: {note}" for note in notes)
        self.provenance = {"format": "DICOM", "colours": str(first.photometric_interpretation).lower()}

    def _read(self, box: Box, level: int) -> NDArray[Any]:
        number = self._level_numbers[level]
        with self._lock:
            slide = self._opened()
            planes = [
                slide.read_region(
                    (box.x, box.y), number, (box.width, box.height), z=self._plane, path=path, threads=1, as_array=True
                )
                for path in self._paths
            ]
        pixels = np.concatenate([plane.reshape(box.height, box.width, -1) for plane in planes], axis=-1)
        return np.ascontiguousarray(pixels, dtype=self.dtype)

    def _valid(self, box: Box, level: int) -> NDArray[np.bool_]:
        """False where a sparse file leaves a frame out, of any path: wsidicom paints it in the background's colour."""
        chunk = self.levels[level].chunk
        with self._lock:
            group = next(one for one in self._opened().levels if one.level == self._level_numbers[level])
            images = [(path, group.instance_at(path, self._plane).image_data) for path in self._paths]

            def sparse(tile: Box) -> bool:
                at = Point(tile.x // chunk.width, tile.y // chunk.height)
                return any(image.is_sparse(at, self._plane, path) for path, image in images)

            return all_but(box, filter(sparse, tiles_of(self.levels[level], box)))


def series_files(path: str) -> list[Path]:
    """The slide's files: of a folder all, which must be of one series; else the file and its series beside it.

    Raises ImageError for another kind of DICOM object, and for a folder of several slides.
    """
    place = Path(path)
    if place.is_dir():
        found = dict(_volumes(place))
        series = set(found.values())
        if len(series) != 1:
            raise ImageError(f"the folder holds {len(series)} DICOM slides; name one file of the one that is meant")
        return list(found)
    header = _header(place)
    if header.get("SOPClassUID") != VLWholeSlideMicroscopyImageStorage:
        uid = UID(str(header.get("SOPClassUID", "")))
        kind = uid.name if uid.name != uid else "object"  # pydicom knows no name of the newest kinds
        raise ImageError(f"it is a DICOM {kind}; expected a VL Whole Slide Microscopy Image")
    if not _is_volume(header):
        raise ImageError("it is a slide's label, overview or thumbnail; name a file of the specimen's image")
    return [file for file, series in _volumes(place.parent) if series == header.get("SeriesInstanceUID")]


def _volumes(folder: Path) -> Iterator[tuple[Path, str]]:
    """(file, series) of every file that holds a level of a slide."""
    for file in sorted(folder.iterdir()):
        if file.is_file() and _is_dicom(file):
            with suppress(Exception):  # a neighbour that is damaged is not what was asked for
                header = _header(file)
                if header.get("SOPClassUID") == VLWholeSlideMicroscopyImageStorage and _is_volume(header):
                    yield file, str(header.get("SeriesInstanceUID"))


def _header(file: Path) -> pydicom.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_HEADER))


def _is_volume(header: pydicom.Dataset) -> bool:
    kinds = [str(part) for part in header.get("ImageType", [])]
    return "LABEL" not in kinds and "OVERVIEW" not in kinds and "THUMBNAIL" not in kinds


def _is_dicom(file: Path) -> bool:
    return file.is_file() and storage.start(str(file), 132)[128:] == b"DICM"
