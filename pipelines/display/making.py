"""What a process of its own makes in a folder of the cache, while others look at how far it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

CACHE: Final = 8 * 2**30
"""Bytes that the cache on disk may hold; what was not looked at for longest goes first."""
_STATE: Final = "progress.json"


class Making:
    """A folder that is made once; the process is started where it is not there, or not whole."""

    def __init__(self, folder: Path, module: str, arguments: Sequence[str], limit: int = CACHE) -> None:
        """`python -m module ARGUMENTS... FOLDER` makes it, and says so with `tell`."""
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._done = False
        folder.parent.mkdir(parents=True, exist_ok=True)
        if self.progress < 1:
            make_room(folder.parent, limit, keep=folder)
            command = [sys.executable, "-P", "-m", module, *arguments, str(folder)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        else:
            os.utime(folder)

    @property
    def progress(self) -> float:
        """0..1; 1 when all is there."""
        if not self._done:
            try:
                state = float(json.loads((self.folder / _STATE).read_text(encoding="utf-8"))["done"])
            except (OSError, ValueError, KeyError):
                return 0.0
            if state < 1:
                return state
            self._done = True
        return 1.0

    @property
    def failed(self) -> bool:
        """Whether the process that made it has ended early."""
        return self._process is not None and self._process.poll() is not None and self.progress < 1

    def close(self) -> None:
        """Stops the process."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(10)


def tell(folder: Path, share: float) -> None:
    """Says how far a folder is; with 1 it is whole."""
    partial = folder / f".{_STATE}"
    partial.write_text(json.dumps({"done": share}), encoding="utf-8")
    partial.replace(folder / _STATE)


def make_room(cache: Path, limit: int, keep: Path) -> None:
    """Removes what was looked at longest ago until `limit` bytes are not exceeded."""
    folders = sorted((f for f in cache.iterdir() if f.is_dir() and f != keep), key=lambda f: f.stat().st_mtime)
    sizes = {folder: sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) for folder in folders}
    for folder in folders:
        if sum(sizes.values()) <= limit:
            return
        shutil.rmtree(folder, ignore_errors=True)
        sizes[folder] = 0
