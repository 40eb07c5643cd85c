"""From what a user names (files, folders, patterns) to a list of images."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from pipelines.errors import RequestError
from tiling.readers import ENDINGS

FOLDER_ENDINGS = (*ENDINGS, ".jp2", ".vrt", ".zarr")
"""What a file (or a Zarr folder) in a folder must be called to be taken for an image."""


def list_images(named: Iterable[str | Path]) -> list[Path]:
    """Every image that is named, in order, each once: a file, a pattern with * ? [], or a folder's own images.

    A folder gives the files in it that look like images by their ending, not those in folders below. Raises
    RequestError for a path that does not exist, and for a pattern or folder that holds no image.
    """
    found: dict[Path, None] = {}
    for name in named:
        path = Path(name)
        if path.is_dir() and not is_image_name(path):
            inside = sorted(p for p in path.iterdir() if is_image_name(p))
            if not inside:
                raise RequestError(f"the folder {path} holds no image; give a folder of slides or GeoTIFFs")
            found |= dict.fromkeys(inside)
        elif path.exists():
            found[path] = None
        elif glob.has_magic(str(name)):
            matches = sorted(Path(p) for p in glob.glob(str(name), recursive=True))  # noqa: PTH207 - patterns may be absolute
            if not matches:
                raise RequestError(f"no file matches {str(name)!r}")
            found |= dict.fromkeys(p for p in matches if p.is_file() or is_image_name(p))
        else:
            raise RequestError(f"there is no file or folder {path}")
    return list(found)


def is_image_name(path: Path) -> bool:
    """Whether a name promises an image; hidden files never do."""
    return path.name.lower().endswith(FOLDER_ENDINGS) and not path.name.startswith(".")
