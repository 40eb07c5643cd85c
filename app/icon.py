"""The page's sign: a mask of four classes."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def icon() -> bytes:
    """A PNG."""
    classes = np.array([[0, 0, 1, 1], [0, 2, 2, 1], [3, 2, 2, 1], [3, 3, 3, 1]])
    colors = np.array([[38, 70, 83], [42, 157, 143], [233, 196, 106], [231, 111, 81]], np.uint8)
    picture = colors[classes].repeat(8, axis=0).repeat(8, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()
