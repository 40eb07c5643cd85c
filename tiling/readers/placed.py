"""Whether a TIFF or a picture is a map: by its own tags, or by a world file or GDAL's metadata beside it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from tifffile import TiffFile

from tiling import storage
from tiling.readers.tiff_tags import GEOREFERENCE_TAGS, is_slide

PICTURES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
"""Pictures that a world file or GDAL's metadata beside them makes maps."""
SIDECARS: Final = (".aux.xml", ".msk", ".ovr")
WORLD_FILES: Final = (
    *(".wld", ".tfw", ".tifw", ".tiffw", ".pgw", ".pngw", ".jgw", ".jpgw", ".jpegw", ".bpw", ".bmpw", ".wpw", ".webpw"),
)


def is_placed_tiff(path: str) -> bool:
    """Whether a TIFF is a map: by its first page's tags, or by what lies beside it. Never an error."""
    with suppress(Exception), _tiff(path) as tif:
        tags = {int(tag.code) for tag in tif.pages.first.tags}
        if is_slide(tif):
            return 34735 in tags
        return bool(tags & GEOREFERENCE_TAGS) or _is_placed(path)
    return False


def is_slide_tiff(path: str) -> bool:
    """Whether a TIFF is of a microscope's format; one that cannot be told is taken for a slide. Never an error."""
    with suppress(Exception), _tiff(path) as tif:
        return is_slide(tif)
    return True


def is_placed_picture(path: str) -> bool:
    """Whether it is a picture with a place beside it."""
    return path.lower().endswith(PICTURES) and _is_placed(path)


def beside(path: str) -> list[Path]:
    """World files, masks and GDAL's metadata that lie beside a file on a disk; none of a file elsewhere."""
    if storage.is_url(path):
        return []
    file = Path(path)
    endings = [ending for suffix in WORLD_FILES for ending in (suffix, suffix.upper())]
    known = [Path(path + suffix) for suffix in SIDECARS] + [file.with_suffix(ending) for ending in endings]
    return [other for other in known if other.exists()]


def _is_placed(path: str) -> bool:
    return any(not str(file).endswith(".aux.xml") or _tells_more_than_statistics(file) for file in beside(path))


def _tells_more_than_statistics(metadata: Path) -> bool:
    """Whether GDAL's metadata change what an image is: programs leave them beside any file that they once showed."""
    content = metadata.read_bytes()
    return any(word in content for word in (b"<GeoTransform", b"<SRS", b"<GCP", b"RPC", b"<NoDataValue", b"<Colo"))


def _tiff(path: str) -> TiffFile:
    return TiffFile(storage.open_file(storage.open_bytes(path)) if storage.is_url(path) else path)
