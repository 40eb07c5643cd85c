"""JPEG tiles of a TIFF as pictures that stand alone: tables merged in, colours stated, pixels untouched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

SOI: Final = b"\xff\xd8"
_SOS: Final = 0xDA
_DROPPED: Final = (*range(0xE0, 0xF0), 0xFE)
"""Application segments and comments: JFIF or Adobe ones would contradict ours, and others may tell of the scanner."""


class NotJpegError(ValueError):
    """Bytes that are no JPEG."""


def standalone(tile: bytes, tables: bytes | None, ycbcr: bool | None) -> bytes:
    """The tile as a JPEG file of its own. Raises NotJpegError for bytes that are none.

    `tables` is the TIFF's JPEGTables tag. `ycbcr` says how three components are to be read and None that there is one.
    A browser takes three components for YCbCr unless an Adobe segment says otherwise (ITU-T T.872, 6.5.3), and Aperio
    stores RGB.
    """
    head = [SOI]
    if ycbcr is not None:
        head.append(b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + (b"\x01" if ycbcr else b"\x00"))
    if tables:
        head += [segment for kind, segment in _segments(tables) if kind not in _DROPPED]
    for kind, segment in _segments(tile):
        if kind not in _DROPPED:
            head.append(segment)
        if kind == _SOS:
            break
    else:
        raise NotJpegError("there is no picture in this tile")
    return b"".join(head)


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, bytes) of each segment before the picture; the last one, SOS, holds all that follows."""
    if data[:2] != SOI:
        raise NotJpegError("a tile does not start like a JPEG")
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise NotJpegError("a JPEG segment does not start where it should")
        kind = data[at + 1]
        if kind == 0xFF:  # fill bytes may stand before a marker
            at += 1
            continue
        if kind == 0xD9:
            return
        if kind == _SOS:
            yield kind, data[at:]
            return
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield kind, data[at:end]
        at = end
