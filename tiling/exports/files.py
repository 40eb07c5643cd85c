"""How an export reaches its place: complete, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tiling.disk import flush, remove


def printable(text: str) -> str:
    """Without control characters and broken Unicode, as file names may hold them and XML, PNG and TIFF may not."""
    return "".join(character if character.isprintable() else " " for character in text)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path of the same name, to be written; renames it to `path` on success and removes it otherwise.

    It lies in a hidden folder next to `path`, which is removed with all else that was put there.
    """
    folder = path.with_name(f".{path.name}.partial")
    remove(folder)
    folder.mkdir(parents=True)
    try:
        yield folder / path.name
        flush(folder / path.name)
        if path.is_dir():  # which no rename replaces
            remove(path)
        (folder / path.name).replace(path)
        flush(path.parent)
    finally:
        remove(folder)
