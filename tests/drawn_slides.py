"""Slides for tests: small files as scanners write them, with a label and a macro image that nobody may see."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import tifffile
from numpy.typing import NDArray

SECRET: Final = (255, 0, 255)
"""The colour of label and macro, which is in no specimen."""


def tissue(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """(h, w, 3): smooth pink and purple blobs on white, which JPEG keeps nearly as they are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    blobs = np.zeros((height, width), np.float32)
    for _ in range(12):
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        blobs += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * rng.uniform(0.05, 0.2) ** 2 * height * width))
    share = np.clip(blobs, 0, 1)[..., None]
    return (np.array([243, 242, 245]) * (1 - share) + np.array([150, 60, 140]) * share).astype(np.uint8)


def write_svs(path: Path, pixels: NDArray[np.uint8], photometric: str = "rgb", tile: int = 240) -> Path:
    """An Aperio slide: JPEG tiles, RGB as Aperio has them or YCbCr, a quarter level, thumbnail, label and macro."""
    words = "Aperio Image Library v11.2.1\n{} |AppMag = 20|MPP = 0.5"
    quarter = pixels[::4, ::4]
    secret = np.full((60, 80, 3), SECRET, np.uint8)
    tiled = {"photometric": photometric, "compression": "jpeg", "tile": (tile, tile), "metadata": None}
    plain = {"photometric": "rgb", "compression": "lzw", "rowsperstrip": 60, "metadata": None}
    with tifffile.TiffWriter(path) as out:
        out.write(pixels, description=words.format("level 0"), compressionargs={"level": 92}, **tiled)
        out.write(pixels[::8, ::8], description=words.format("thumbnail"), **plain)
        out.write(quarter, description=words.format("level 1"), compressionargs={"level": 92}, **tiled)
        out.write(secret, description=words.format("label 60x80"), subfiletype=1, **plain)
        out.write(secret, description=words.format("macro 60x80"), subfiletype=9, **plain)
    return path
