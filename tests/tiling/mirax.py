"""Writes small MIRAX slides, as OpenSlide reads them: a grid of PNG tiles, of which some were never scanned."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SLIDE_ID = "0123456789ABCDEF0123456789ABCDEF"


def write_mirax(path: Path, pixels: NDArray[Any], *, tile: int, levels: int, um: float | None = 0.25) -> Path:
    """A slide of (H, W, 3), H and W whole numbers of tiles; a tile that is black all over is left out.

    Coarser levels hold every second pixel of the level above, and are stored in tiles of the same size.
    """
    folder = path.with_suffix("")
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(path, "JPEG")
    down, across = pixels.shape[0] // tile, pixels.shape[1] // tile
    data = bytearray(b"\0" * 16)
    pages: list[list[tuple[int, int, int, int]]] = []
    for level in range(levels):
        concat = 2**level
        rows: list[tuple[int, int, int, int]] = []
        for y in range(0, down, concat):
            for x in range(0, across, concat):
                full = pixels[y * tile : (y + concat) * tile, x * tile : (x + concat) * tile]
                if not full.any():
                    continue
                part = np.zeros((tile, tile, 3), np.uint8)
                small = full[::concat, ::concat]
                part[: small.shape[0], : small.shape[1]] = small
                encoded = io.BytesIO()
                Image.fromarray(part).save(encoded, "PNG")
                rows.append((y * across + x, len(data), len(encoded.getvalue()), 0))
                data += encoded.getvalue()
        pages.append(rows)
    (folder / "Data0000.dat").write_bytes(bytes(data))
    (folder / "Index.dat").write_bytes(_index(pages))
    (folder / "Slidedat.ini").write_text(_ini(down, across, tile, levels, um), encoding="utf-8")
    return path


def _index(pages: list[list[tuple[int, int, int, int]]]) -> bytes:
    head = b"01.02" + SLIDE_ID.encode()
    table = len(head) + 8
    out = bytearray(head + struct.pack("<ii", table, 0) + bytes(4 * len(pages)))
    for level, rows in enumerate(pages):
        struct.pack_into("<i", out, table + 4 * level, len(out))
        out += struct.pack("<ii", 0, len(out) + 8)
        out += struct.pack("<ii", len(rows), 0)
        for row in rows:
            out += struct.pack("<iiii", *row)
    return bytes(out)


def _ini(down: int, across: int, tile: int, levels: int, um: float | None) -> str:
    sections = "\n".join(f"HIER_0_VAL_{i}_SECTION = LAYER_0_LEVEL_{i}_SECTION" for i in range(levels))
    text = f"""[GENERAL]
SLIDE_VERSION = 01.02
SLIDE_ID = {SLIDE_ID}
IMAGENUMBER_X = {across}
IMAGENUMBER_Y = {down}
OBJECTIVE_MAGNIFICATION = 20
CameraImageDivisionsPerSide = 1

[HIERARCHICAL]
HIER_COUNT = 1
NONHIER_COUNT = 0
INDEXFILE = Index.dat
HIER_0_NAME = Slide zoom level
HIER_0_COUNT = {levels}
{sections}

[DATAFILE]
FILE_COUNT = 1
FILE_0 = Data0000.dat
"""
    for i in range(levels):
        pixel = (um or 352.777) * 2**i
        text += f"""
[LAYER_0_LEVEL_{i}_SECTION]
OVERLAP_X = 0.0
OVERLAP_Y = 0.0
MICROMETER_PER_PIXEL_X = {pixel}
MICROMETER_PER_PIXEL_Y = {pixel}
IMAGE_FORMAT = PNG
IMAGE_FILL_COLOR_BGR = 16777215
DIGITIZER_WIDTH = {tile}
DIGITIZER_HEIGHT = {tile}
IMAGE_CONCAT_FACTOR = {0 if i == 0 else 1}
"""
    return text
