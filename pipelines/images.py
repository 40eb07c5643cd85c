"""From what a user names (files, folders, patterns, lists) to a list of images."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipelines.errors import RequestError
from tiling import storage
from tiling.readers import ENDINGS, READERS

FOLDER_ENDINGS = (*ENDINGS, ".jp2", ".vrt", ".zarr")
"""What a file (or a Zarr folder) in a folder must be called to be taken for an image."""
RESULT_FILES = ("run.json", "plan.json")
"""A folder that holds one of these is a result, finished or not: what lies in it is no input."""


def list_images(named: Iterable[str | Path], *, recursive: bool = False) -> list[Path]:
    """Every image that is named, in order, each once: a file, a pattern with * ? [], a folder's own images, or @list.

    A folder gives what looks like an image by its ending, and folders that are images themselves (Zarr, DICOM); with
    `recursive`, also what lies in the folders below. Results of earlier runs are passed over. `@list.txt` names a text
    file with a path a line; blank lines and those that start with # are skipped, and a path that does not exist is
    looked for beside the list. What is missing there is left for its own failure. Raises RequestError for a path that
    does not exist, and for a pattern, folder or list that holds no image.
    """
    found: dict[Path, None] = {}
    for name in named:
        found |= dict.fromkeys(_images(str(name), recursive))
    return list(found)


def is_image_name(path: Path) -> bool:
    """Whether a name promises an image; hidden files never do."""
    return path.name.lower().endswith(FOLDER_ENDINGS) and not path.name.startswith(".")


def is_image_folder(path: Path) -> bool:
    """Whether a folder is an image itself: a Zarr array, or the DICOM files of a slide and no other image."""
    if path.suffix.lower() == ".zarr" or READERS["array"].accepts(str(path)):
        return True
    others = (p for p in path.iterdir() if is_image_name(p) and p.suffix.lower() != ".dcm")
    return READERS["dicom"].accepts(str(path)) and next(others, None) is None


def _images(name: str, recursive: bool) -> list[Path]:
    path = Path(name)
    if storage.is_url(name):
        return [path]  # whether it is there, and an image, is found out when it is opened
    if path.is_dir():
        if is_image_folder(path):
            return [path]
        inside = list(_inside(path, recursive))
        if not inside:
            below = "" if recursive else "; --recursive also looks into the folders below"
            raise RequestError(f"the folder {path} holds no image; give a folder of slides or GeoTIFFs{below}")
        return inside
    if path.exists():
        return [path]
    if name.startswith("@"):
        return _listed(Path(name[1:]))
    if glob.has_magic(name):
        matches = sorted(Path(p) for p in glob.glob(name, recursive=True))  # noqa: PTH207 - patterns may be absolute
        if not matches:
            raise RequestError(f"no file matches {name!r}")
        return [p for p in matches if (p.is_file() or is_image_folder(p)) and not is_result(p.parent)]
    raise RequestError(f"there is no file or folder {path}")


def _inside(folder: Path, recursive: bool) -> Iterator[Path]:
    """The images in a folder, by name, then those of the folders below it."""
    if is_result(folder):
        return
    below = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            if is_image_name(path):
                yield path
        elif is_image_folder(path):
            yield path
        elif recursive and not path.is_symlink():
            below.append(path)
    for path in below:
        yield from _inside(path, recursive)


def is_result(folder: Path) -> bool:
    """Whether a folder is the result of a run."""
    return any((folder / name).is_file() for name in RESULT_FILES)


def _listed(path: Path) -> list[Path]:
    """The paths that a text file lists."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise RequestError(f"cannot read the list {path}: {reason}; write one path a line") from error
    names = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    if not names:
        raise RequestError(f"the list {path} names no image; write one path a line")
    return [Path(name) if storage.is_url(name) or Path(name).exists() else path.parent / name for name in names]
