"""One process at a time: a lock on a name, which the operating system drops when its process ends, however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tiling.errors import ImageError


class Busy(ImageError):  # noqa: N818 - it says what is the case, like BrokenPipe
    """Another process is writing this image."""


def take_lock(path: Path) -> FileLock:
    """The lock `path`.lock, beside `path`; raises Busy while another process, or another caller here, has it."""
    lock = FileLock(path.with_name(f"{path.name}.lock"), timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise Busy(f"{path}: another process is writing this image; wait for it, or write to another folder") from None
    return lock


def give_back(lock: FileLock) -> None:
    """Lets others have it; nothing where it was given back already."""
    if lock.is_locked:
        with suppress(PermissionError):  # Windows keeps the name of an open file: there the empty file stays
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of `path` meanwhile; raises Busy where another has it."""
    lock = take_lock(path)
    try:
        yield
    finally:
        give_back(lock)
