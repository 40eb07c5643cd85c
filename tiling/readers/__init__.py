"""Opens images: a table of readers, tried in order, and one function that picks the right one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import zarr
from numpy import ndarray
from numpy.typing import NDArray

from tiling import storage
from tiling.errors import ImageError
from tiling.readers.array import ArraySource
from tiling.readers.dicom import DicomSource
from tiling.readers.flat import FlatSource
from tiling.readers.opened import NoDecoder, OpenedImage
from tiling.readers.openslide import OpenSlideSource
from tiling.readers.raster import RasterSource
from tiling.readers.tiff import TiffSource

if TYPE_CHECKING:
    from tiling.source import Source

READERS: Final[dict[str, type[OpenedImage]]] = {
    "raster": RasterSource,
    "tiff": TiffSource,
    "dicom": DicomSource,
    "openslide": OpenSlideSource,
    "array": ArraySource,
    "flat": FlatSource,
}
"""Name -> reader, in the order in which a file is offered to them: a georeferenced TIFF is a raster, not a slide."""

READABLE: Final = (
    "GeoTIFF, COG, JPEG 2000, VRT and GDAL's other formats; SVS, NDPI, OME-TIFF, QPTIFF, SCN, Philips and other TIFFs; "
    "MIRAX and OpenSlide's other formats; DICOM slides; Zarr and OME-Zarr; PNG, JPEG, BMP, WebP"
)

ENDINGS: Final = (
    *(".tif", ".tiff", ".svs", ".ndpi", ".scn", ".qptiff", ".btf", ".tf8", ".tf2", ".mrxs", ".bif", ".dcm"),
    *(".png", ".jpg", ".jpeg", ".bmp", ".webp"),
)
"""Names that promise one of these formats, so that a file with other content is a damaged one."""


def open_image(
    image: str | os.PathLike[str] | NDArray[Any] | zarr.Array[Any],
    *,
    reader: str | None = None,
    bands: Sequence[str] = (),
    indexed: bool = False,
    strict: bool = True,
) -> Source:
    """Opens a file, or an array (H, W) or (H, W, bands), reading headers only.

    `reader` names a row of READERS instead of letting the file decide. `bands` keeps these bands in this order, by name
    or by number from 1. `indexed` gives the values of a palette, for masks, instead of its colours. Without `strict`, a
    tile that cannot be decoded is no data and told in `warnings`, not an error. Raises ImageError, in one line, for
    whatever cannot be opened, and ValueError for a reader that does not exist.
    """
    if reader is not None and reader not in READERS:
        raise ValueError(f"there is no reader {reader!r}; the readers are {', '.join(READERS)}")
    source = _open(image, reader, indexed)
    if bands:
        source.choose(bands)
    source.strict = strict
    return source


def _open(image: Any, reader: str | None, indexed: bool) -> OpenedImage:
    if isinstance(image, ndarray | zarr.Array):
        return ArraySource(image)
    path = storage.restored(os.fspath(image))
    _check_exists(path)
    if reader is not None:
        return READERS[reader](path, indexed=indexed)
    refused: NoDecoder | None = None
    for known in READERS.values():
        if known.accepts(path):
            try:
                return known(path, indexed=indexed)
            except NoDecoder as error:
                refused = error
                break
    for known in READERS.values():
        if known.rescues(path):
            try:
                return known(path, indexed=indexed)
            except ImageError as error:
                raise refused or error from None
    raise refused or ImageError(_what_it_is(path))


def _what_it_is(path: str) -> str:
    """Why nobody reads it, in one line."""
    if storage.is_url(path) and path.lower().endswith((".mrxs", ".vms", ".vmu", ".svslide", ".bif", ".dcm")):
        return f"{path}: slides in this format are read from a disk only; copy it here, with the files beside it"
    if Path(path).is_dir():
        return f"{path}: is a folder, and not a Zarr array or a DICOM slide; name the image file itself"
    if path.lower().endswith(ENDINGS):
        ending = Path(path).suffix
        return f"{path}: its content is not that of a {ending} file; it may be damaged, copy it again"
    return f"{path}: is no image that is read here; what is read: {READABLE}"


def _check_exists(path: str) -> None:
    if storage.is_url(path):
        found = storage.size(path)
        if found is None and not ArraySource.accepts(path):
            raise ImageError(f"{path}: no such file")
        if found == 0:
            raise ImageError(f"{path}: the file is empty; copy it again")
        if found is not None:
            storage.open_bytes(path).read_at(0, 1)  # says so where a server sends no parts
        return
    try:
        _check_readable(Path(path))
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from error


def _check_readable(place: Path) -> None:
    """Raises OSError where the system does not let us read, and ImageError for what holds nothing to be read."""
    if not place.exists():
        raise ImageError(f"{place}: no such file")
    if place.is_dir():
        next(place.iterdir(), None)
    elif not place.is_file():
        raise ImageError(f"{place}: is neither a file nor a folder")
    elif place.stat().st_size == 0:
        raise ImageError(f"{place}: the file is empty; copy it again")
    else:
        place.open("rb").close()
