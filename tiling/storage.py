"""Where files lie: on a disk, behind http(s), or in an object store (s3, gs, az). Bytes, names and stamps of them."""

from __future__ import annotations

import io
import os
import re
import threading
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol
from urllib.parse import unquote, urlsplit

from tiling.errors import ImageError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES: Final = ("http", "https", "s3", "gs", "az")
BUFFER: Final = 2**16
"""Bytes that are fetched at once where headers are read piece by piece."""


class Bytes(Protocol):
    """A file whose bytes several threads read at once."""

    def read_at(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`; fewer only at the file's end."""
        ...

    def close(self) -> None: ...


def is_url(path: str) -> bool:
    """Whether a path is an address elsewhere. Raises ImageError for a scheme that is not read."""
    scheme, mark, _ = path.partition("://")
    if not mark or not scheme.isalnum():
        return False
    if scheme.lower() not in SCHEMES:
        raise ImageError(f"{path}: cannot be reached; addresses start with {', '.join(s + '://' for s in SCHEMES)}")
    return True


def restored(path: str) -> str:
    """An address that went through `Path`, which takes one of its two slashes; all else as it is."""
    scheme, mark, rest = path.partition(":/")
    is_address = mark and scheme.lower() in SCHEMES and not rest.startswith("/")
    return f"{scheme}://{rest}" if is_address else path


def absolute(path: str) -> str:
    """The path from the root, so that it means the same in any folder; an address as it is."""
    return path if is_url(path) else str(Path(path).absolute())


def exists(path: str) -> bool:
    """Whether there is such a file or, on a disk, such a folder. Raises ImageError where a store cannot be asked."""
    if not is_url(path):
        return Path(path).exists()
    return size(path) is not None


def size(path: str) -> int | None:
    """Bytes of a file; None where there is none."""
    if not is_url(path):
        file = Path(path)
        return file.stat().st_size if file.is_file() else None
    found = _look_up(path)
    return None if found is None else int(found["size"])


def stamp(path: str) -> str:
    """Changes when the file does: its size and time of change, or what the store calls its version."""
    if not is_url(path):
        stat = Path(path).stat()
        return f"{stat.st_size}:{stat.st_mtime_ns}"
    found = _look_up(path)
    if found is None:
        raise ImageError(f"{path}: no such file")
    return f"{found['size']}:{found['e_tag'] or found['last_modified']}"


def start(path: str, count: int) -> bytes:
    """The first bytes of a file; none where there is no such file."""
    with suppress(OSError, ImageError):
        if not is_url(path):
            with Path(path).open("rb") as file:
                return file.read(count)
        return open_bytes(path).read_at(0, count)
    return b""


def read_all(path: str) -> bytes:
    """A whole file."""
    if not is_url(path):
        return Path(path).read_bytes()
    length = size(path)
    if length is None:
        raise ImageError(f"{path}: no such file")
    return open_bytes(path).read_at(0, length)


def open_bytes(path: str) -> LocalBytes | RemoteBytes:
    """Opens a file for reading at any place."""
    return RemoteBytes(path) if is_url(path) else LocalBytes(path)


def open_file(source: LocalBytes | RemoteBytes) -> BinaryIO:
    """The same as a seekable file, buffered: for libraries that read headers piece by piece."""
    return io.BufferedReader(_Raw(source), BUFFER)


class LocalBytes:
    """A file on a disk."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 - closed by close
        self.length = os.fstat(self._file.fileno()).st_size
        self._lock = threading.Lock()

    def read_at(self, offset: int, count: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), count, offset)
        with self._lock:  # Windows has one position for all
            self._file.seek(offset)
            return self._file.read(count) or b""

    def close(self) -> None:
        self._file.close()


class RemoteBytes:
    """A file behind an address, read by ranges; nothing is kept."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._store, self._key = store_of(path)
        length = size(path)
        if length is None:
            raise ImageError(f"{path}: no such file")
        self.length = length

    def read_at(self, offset: int, count: int) -> bytes:
        import obstore

        end = min(offset + count, self.length)
        if offset >= end:
            return b""
        try:
            return bytes(obstore.get_range(self._store, self._key, start=offset, end=end))
        except obstore.exceptions.NotSupportedError as error:
            raise ImageError(f"{self.path}: its server sends whole files only, no parts; copy it here first") from error

    def close(self) -> None:
        """Connections belong to the store."""


class _Raw(io.RawIOBase):
    """Bytes with a position."""

    def __init__(self, source: LocalBytes | RemoteBytes) -> None:
        self._source, self._at = source, 0
        self.name = source.path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._source.length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        data = self._source.read_at(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()


def store_of(path: str) -> tuple[ObjectStore, str]:
    """The store behind an address, and the name of the file in it. Raises ImageError where it cannot be set up."""
    parts = urlsplit(path)
    if parts.query:  # a signed address is a store of one file
        return _store(path), ""
    return _store(f"{parts.scheme.lower()}://{parts.netloc}"), unquote(parts.path.lstrip("/"))


def folder_store(path: str) -> ObjectStore:
    """The store whose names count from a folder, like that of a Zarr array."""
    return _store(path.rstrip("/"))


def send(file: Path, path: str) -> None:
    """Writes a local file to an address. Raises ImageError where the store does not take it."""
    import obstore

    store, key = store_of(path)
    try:
        obstore.put(store, key, file)
    except Exception as error:
        raise ImageError(f"{path}: cannot be written: {_said(error)}") from error


def delete(path: str) -> None:
    """Removes a file behind an address, if it is there. Raises ImageError where the store does not let us."""
    import obstore

    store, key = store_of(path)
    try:
        obstore.delete(store, key)
    except FileNotFoundError:
        pass
    except Exception as error:
        raise ImageError(f"{path}: cannot be written: {_said(error)}") from error


def names(path: str) -> list[str]:
    """The files in a folder of a store and below it, named from there."""
    import obstore

    store, key = store_of(path.rstrip("/") + "/")
    try:
        pages = list(obstore.list(store, key))
    except Exception as error:
        raise ImageError(f"{path}: cannot be reached: {_said(error)}") from error
    return sorted(str(entry["path"])[len(key) :].lstrip("/") for page in pages for entry in page)


def gdal_path(path: str) -> str:
    """What GDAL calls a file. Raises ImageError for a name that it cannot be told."""
    if not is_url(path):
        if any("\ud800" <= sign <= "\udfff" for sign in path):
            raise ImageError("its name is not UTF-8, and GDAL reads no other; rename it")
        return path
    scheme, _, rest = path.partition("://")
    folder = {"s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/"}.get(scheme.lower())
    return f"{folder}{rest}" if folder else f"/vsicurl/{path.replace(' ', '%20')}"


def gdal_options(path: str) -> dict[str, Any]:
    """How GDAL reaches a file: no listing of what lies beside it, a few more tries, and the environment's store.

    Credentials never pass through here: GDAL finds those of the environment itself.
    """
    if not is_url(path):
        return {}
    options: dict[str, Any] = {
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_HTTP_MAX_RETRY": 3,
        "GDAL_HTTP_RETRY_DELAY": 1,
        "GDAL_HTTP_CONNECTTIMEOUT": 20,
    }
    endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")
    if path.startswith("s3://") and endpoint.netloc:
        options |= {"AWS_S3_ENDPOINT": endpoint.netloc, "AWS_VIRTUAL_HOSTING": "FALSE"}
        options["AWS_HTTPS"] = "NO" if endpoint.scheme == "http" else "YES"
    if path.startswith("s3://") and _anonymous(path):
        options["AWS_NO_SIGN_REQUEST"] = "YES"
    return options


def _store(root: str) -> ObjectStore:
    return _set_up(root, os.environ.get("AWS_ENDPOINT_URL"))


@lru_cache(maxsize=64)
def _set_up(root: str, _endpoint: str | None) -> ObjectStore:
    """One store for all files behind an address: it keeps its connections."""
    from obstore.store import from_url

    try:
        return from_url(root, client_options={"allow_http": True}, retry_config={"max_retries": 3}, **_anonymous(root))
    except Exception as error:
        raise ImageError(f"{root}: cannot be reached: {_said(error)}") from error


def _anonymous(root: str) -> dict[str, Any]:
    """Without credentials in the environment, buckets are read unsigned: the machine is not asked for some."""
    known = {
        "AWS_ACCESS_KEY_ID",
        "AWS_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    }
    return {"skip_signature": True} if root.startswith("s3://") and not known & set(os.environ) else {}


def _look_up(path: str) -> Any:
    """What the store says of a file; None where it has none. Raises ImageError where it cannot be asked."""
    import obstore

    store, key = store_of(path)
    try:
        return obstore.head(store, key)
    except FileNotFoundError:
        return None
    except Exception as error:
        raise ImageError(f"{path}: cannot be reached: {_said(error)}") from error


def _said(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # Between what failed and why, the library tells how often it tried.
    return re.sub(r" in [\d.]+m?s, after \d+ retries, max_retries: \d+, retry_timeout: \d+s\s*", "", lines[0])[:300]
