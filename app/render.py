"""Class colours laid over a picture. NumPy in, NumPy or PNG bytes out; knows no page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.view import PAPER

Color = tuple[int, int, int]
"""Red, green, blue, 0..255."""


def overlay(
    rgb: NDArray[np.uint8] | None, values: NDArray[np.uint8], colors: Mapping[int, Color], opacity: float
) -> NDArray[np.uint8]:
    """(h, w, 3): `rgb` under the colours of the class values (h, w) that have one; opacity 0 is `rgb`, 1 the colours.

    Light grey lies under the colours where there is no picture.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be 0 to 1, got {opacity}")
    base = np.full((*values.shape, 3), PAPER, np.uint8) if rgb is None else rgb
    table, strength = np.zeros((256, 3), np.float32), np.zeros(256, np.float32)
    for value, color in colors.items():
        table[value], strength[value] = color, opacity
    under = base.astype(np.float32)
    return np.round(under + (table[values] - under) * strength[values][..., None]).astype(np.uint8)


def enlarge(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Every pixel repeated as a square, as large as fits `height` x `width`; a larger picture stays as it is."""
    side = max(1, min(height // picture.shape[0], width // picture.shape[1]))
    return picture.repeat(side, axis=0).repeat(side, axis=1)


def png(picture: NDArray[np.uint8]) -> bytes:
    """A PNG of (h, w, 3), packed lightly: it is made anew for every move of a slider."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def swatch(color: Color) -> str:
    """A small square of one colour with a thin frame, as a data URI."""
    square = np.full((16, 16, 3), 128, np.uint8)
    square[1:-1, 1:-1] = color
    return "data:image/png;base64," + base64.b64encode(png(square)).decode()


def icon() -> bytes:
    """The page's sign as a PNG: a mask of four classes."""
    classes = np.array([[0, 0, 1, 1], [0, 2, 2, 1], [3, 2, 2, 1], [3, 3, 3, 1]])
    colors = np.array([[38, 70, 83], [42, 157, 143], [233, 196, 106], [231, 111, 81]], np.uint8)
    return png(enlarge(colors[classes], 32, 32))
