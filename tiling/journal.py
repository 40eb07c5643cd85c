"""The list of finished blocks: a text file that only grows, and that a crash cannot spoil."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

from tiling.disk import flush
from tiling.geometry import Box

_LINE = re.compile(r"(\d+) (\d+) ([1-9]\d*) ([1-9]\d*) ([0-9a-f]{8})")


class Journal:
    """One line 'y x height width crc32' a block. A line that a kill or a full disk cut short counts as not written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._torn = False

    def read(self) -> dict[Box, int]:
        """CRC-32 of each finished block's labels; of a block written twice, the last."""
        if not self.path.exists():
            return {}
        # As bytes: read as text, a stray carriage return would end a line that was cut short.
        lines = self.path.read_bytes().decode("ascii", errors="replace").split("\n")[:-1]
        matches = map(_LINE.fullmatch, lines)
        rows = [match.groups() for match in matches if match]
        return {Box(int(y), int(x), int(height), int(width)): int(crc, 16) for y, x, height, width, crc in rows}

    def append(self, blocks: Mapping[Box, int]) -> None:
        """Returns when the lines are on the disk. Raises OSError where they are not."""
        lines = b"".join(_line(box, crc) for box, crc in blocks.items())
        # One write to a file opened for appending: on a local disk, lines of several processes never mix.
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        try:
            self._write(handle, b"\n" + lines if self._torn else lines)
            os.fsync(handle)
        finally:
            os.close(handle)

    def rewrite(self, blocks: Mapping[Box, int]) -> None:
        """Replaces the whole list, at once or not at all."""
        fresh = self.path.with_suffix(".new")
        fresh.write_bytes(b"".join(_line(box, crc) for box, crc in blocks.items()))
        flush(fresh)
        fresh.replace(self.path)
        flush(self.path.parent)

    def _write(self, handle: int, line: bytes) -> None:
        self._torn = True
        if os.write(handle, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._torn = False


def _line(box: Box, crc: int) -> bytes:
    return f"{box.y} {box.x} {box.height} {box.width} {crc:08x}\n".encode("ascii")
