"""Photographs and scans without levels: PNG, JPEG, BMP, WebP, decoded whole."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tiling import storage, validity
from tiling.errors import ImageError
from tiling.geometry import Box, Size
from tiling.georef import Georef
from tiling.readers.opened import OpenedImage, one_line
from tiling.readers.orientation import Orientation
from tiling.source import Kind, Level

FORMATS: Final = ("PNG", "JPEG", "BMP", "WEBP")
MAX_PIXELS: Final = 2 * 10**9

_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"RIFF")
_MODES = {"P": np.uint8, "L": np.uint8, "LA": np.uint8, "RGB": np.uint8, "RGBA": np.uint8, "F": np.float32}
_MODES |= {"I;16": np.uint16, "I;16L": np.uint16, "I;16B": np.uint16, "I": np.int32}
_ORIENTATION = 0x0112
_OPENING = threading.Lock()


class FlatSource(OpenedImage):
    """An image file of one level, upright as its EXIF orientation says; alpha says what is valid. Palettes are colours.

    These formats have no tiles: the first read decodes the whole image and keeps it until `close`, so up to MAX_PIXELS
    only. World files are not read; the world is the pixel grid.
    """

    kind: Kind = "array"

    def __init__(self, path: str | os.PathLike[str], *, indexed: bool = False) -> None:
        super().__init__(path, indexed=indexed)
        self._lock = threading.Lock()
        self._decoded: tuple[NDArray[Any], NDArray[np.bool_]] | None = None
        with one_line(f"{self.path}: cannot be read"), _open(self.path) as image:
            self._describe(image)

    @classmethod
    def accepts(cls, path: str) -> bool:
        start = storage.start(path, 12)
        return start.startswith(_MAGIC) and (start[:4] != b"RIFF" or start[8:] == b"WEBP")

    def close(self) -> None:
        """Forgets the decoded pixels. Reading again decodes them anew."""
        with self._lock:
            self._decoded = None

    @property
    def working_bytes(self) -> int:
        # The decoded image and its mask are kept; Pillow holds another copy while it decodes.
        return self.levels[0].size.pixels * (2 * (len(self.bands) + 1) * self.dtype.itemsize + 1)

    def _describe(self, image: Image.Image) -> None:
        self._palette = image.mode == "P" and not self._indexed
        _refuse_unusable(image)
        # The base class's: that of PNG decodes the image to look for EXIF at the file's end.
        self._turn = Orientation.of_tag(Image.Image.getexif(image).get(_ORIENTATION, 1))
        bits, kind = _png_header(self.path) if image.format == "PNG" else (8, 0)
        self._deep = bits == 16
        # Pillow stretches grey of 2 or 4 bits to 0..255, which would make other classes of a mask's values.
        self._stretch = 255 // (2**bits - 1) if self._indexed and kind == 0 and bits < 8 else 1
        colours = bool(kind & 2) if self._deep else self._palette or image.mode in ("RGB", "RGBA")
        self.dtype = np.dtype(np.uint16 if self._deep else _MODES[image.mode])
        self.bands = ("red", "green", "blue") if colours else ("band 1",)
        size = self._turn.size(Size(image.height, image.width))
        self.levels = (Level(size, size, (1.0, 1.0)),)
        self.georef = Georef.pixels()
        frames = getattr(image, "n_frames", 1)
        notes = [f"has {frames} frames: only the first is read"] if frames > 1 and image.format != "MPO" else []
        notes += ["has palette colours: they are read as red, green and blue"] if self._palette else []
        self._notes = tuple(f"{self.name}: {note}" for note in notes)
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
            clear = image.info.get("transparency")
            if self._palette:
                image, clear = image.convert("RGB" if clear is None else "RGBA"), None
            pixels = imagecodecs.png_decode(storage.read_all(self.path)) if self._deep else np.asarray(image)
        pixels = self._turn.upright(pixels.reshape(*pixels.shape[:2], -1))
        count = len(self.bands)
        alpha = validity.opaque(pixels[..., count]) if pixels.shape[-1] > count else None
        bands = np.ascontiguousarray(pixels[..., :count], dtype=self.dtype)
        if self._stretch > 1:
            bands = bands // self._stretch
        keyed = None if clear is None or isinstance(clear, bytes) else (bands != np.atleast_1d(clear)).any(axis=-1)
        return bands, validity.combine(validity.finite(bands), alpha, keyed)


@contextmanager
def _open(path: str) -> Iterator[Image.Image]:
    # Pillow's own limit is a warning at 89 megapixels, set for the whole process; ours is an error at MAX_PIXELS.
    file = io.BytesIO(storage.read_all(path)) if storage.is_url(path) else path
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        yield image


def _refuse_unusable(image: Image.Image) -> None:
    width, height = image.size
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"it is {height} x {width} px, and {image.format} can only be decoded whole; convert it to a tiled TIFF, "
            "e.g. vips tiffsave IN OUT --tile --pyramid --compression deflate"
        )
    if image.mode == "1":
        raise ImageError("its samples are 1-bit: a mask, not intensities; save it with 8 bits")
    if image.mode not in _MODES:
        raise ImageError(f"its colours are {image.mode}; save it as RGB or greyscale")


def _png_header(path: str) -> tuple[int, int]:
    """Bits of a sample, and the colour type, of which bit 2 means colour: the 25th and 26th byte of a PNG."""
    start = storage.start(path, 26)
    return start[24], start[25]
