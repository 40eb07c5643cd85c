"""Photographs and scans without levels: PNG, JPEG, BMP, WebP, decoded whole."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tiling import validity
from tiling.errors import ImageError
from tiling.geometry import Box, Size
from tiling.georef import Georef
from tiling.readers.opened import OpenedImage, one_line
from tiling.source import Kind, Level

FORMATS: Final = ("PNG", "JPEG", "BMP", "WEBP")
MAX_PIXELS: Final = 2 * 10**9

_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"RIFF")
_MODES = {"L": np.uint8, "LA": np.uint8, "RGB": np.uint8, "RGBA": np.uint8, "F": np.float32}
_MODES |= {"I;16": np.uint16, "I;16L": np.uint16, "I;16B": np.uint16, "I": np.int32}
_UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: np.fliplr,
    3: lambda a: a[::-1, ::-1],
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}
"""What makes an image upright, for each value of EXIF's Orientation; those from 5 on swap height and width."""
_ORIENTATION = 0x0112
_OPENING = threading.Lock()


class FlatSource(OpenedImage):
    """An image file of one level, upright as its EXIF orientation says; alpha says what is valid.

    These formats have no tiles: the first read decodes the whole image and keeps it until `close`, so up to MAX_PIXELS
    only. World files are not read; the world is the pixel grid.
    """

    kind: Kind = "array"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._lock = threading.Lock()
        self._decoded: tuple[NDArray[Any], NDArray[np.bool_]] | None = None
        with one_line(f"{self.path}: cannot be read"), _open(self.path) as image:
            self._describe(image)

    @classmethod
    def accepts(cls, path: str) -> bool:
        with suppress(OSError), Path(path).open("rb") as file:
            start = file.read(12)
            return start.startswith(_MAGIC) and (start[:4] != b"RIFF" or start[8:] == b"WEBP")
        return False

    def close(self) -> None:
        """Forgets the decoded pixels. Reading again decodes them anew."""
        with self._lock:
            self._decoded = None

    def _describe(self, image: Image.Image) -> None:
        _refuse_unusable(image)
        # The base class's: that of PNG decodes the image to look for EXIF at the file's end.
        self._orientation = int(Image.Image.getexif(image).get(_ORIENTATION, 1))
        height, width = image.size if self._orientation >= 5 else image.size[::-1]
        bits, kind = _png_header(self.path) if image.format == "PNG" else (8, 0)
        self._deep = bits == 16
        colours = bool(kind & 2) if self._deep else image.mode in ("RGB", "RGBA")
        self.dtype = np.dtype(np.uint16 if self._deep else _MODES[image.mode])
        self.bands = ("red", "green", "blue") if colours else ("band 1",)
        size = Size(height, width)
        self.levels = (Level(size, size, (1.0, 1.0)),)
        self.georef = Georef.pixels()
        frames = getattr(image, "n_frames", 1)
        several = frames > 1 and image.format != "MPO"
        self.warnings = (f"{self.name}: has {frames} frames: only the first is read",) if several else ()
        self.provenance = {"format": str(image.format), "mode": image.mode}

    def _read(self, box: Box, level: int) -> NDArray[Any]:
        assert level == 0
        return self._pixels()[0][box.slices].copy()

    def _valid(self, box: Box, level: int) -> NDArray[np.bool_]:
        assert level == 0
        return self._pixels()[1][box.slices].copy()

    def _pixels(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        with self._lock:
            if self._decoded is None:
                self._decoded = self._decode()
            return self._decoded

    def _decode(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Pixels (H, W, bands) and what is valid (H, W)."""
        with _open(self.path) as image:
            # Pillow keeps 8 of the 16 bits of a colour PNG.
            pixels = imagecodecs.png_decode(Path(self.path).read_bytes()) if self._deep else np.asarray(image)
            clear = image.info.get("transparency")
        pixels = _UPRIGHT.get(self._orientation, np.asarray)(pixels.reshape(*pixels.shape[:2], -1))
        count = len(self.bands)
        alpha = validity.opaque(pixels[..., count]) if pixels.shape[-1] > count else None
        bands = np.ascontiguousarray(pixels[..., :count], dtype=self.dtype)
        keyed = None if clear is None or isinstance(clear, bytes) else (bands != np.atleast_1d(clear)).any(axis=-1)
        return bands, validity.combine(validity.finite(bands), alpha, keyed)


def _open(path: str) -> Image.Image:
    # Pillow's own limit is a warning at 89 megapixels, set for the whole process; ours is an error at MAX_PIXELS.
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _refuse_unusable(image: Image.Image) -> None:
    width, height = image.size
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"it is {height} x {width} px, and {image.format} can only be decoded whole; convert it to a tiled TIFF, "
            "e.g. vips tiffsave IN OUT --tile --pyramid --compression deflate"
        )
    if image.mode in ("P", "PA"):
        raise ImageError(
            "palette colours are class numbers, not intensities; expand them to RGB, "
            "e.g. magick IN -type TrueColor OUT, or Image.open(IN).convert('RGB')"
        )
    if image.mode == "1":
        raise ImageError("its samples are 1-bit: a mask, not intensities; save it with 8 bits")
    if image.mode not in _MODES:
        raise ImageError(f"its colours are {image.mode}; save it as RGB or greyscale")


def _png_header(path: str) -> tuple[int, int]:
    """Bits of a sample, and the colour type, of which bit 2 means colour: the 25th and 26th byte of a PNG."""
    with Path(path).open("rb") as file:
        start = file.read(26)
    return start[24], start[25]
