"""Coarser pixels: the mean of what is data below each. Arrays in, arrays out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def halve(pixels: NDArray[Any], valid: NDArray[np.bool_], factor: int = 2) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """((h, w, bands), (h, w)) `factor` times smaller, rounded up: the mean of the valid pixels of each cell.

    A cell with no valid pixel is 0 and not valid. The dtype stays; a last row or column counts what is there.
    """
    height, width = valid.shape
    inner = (height // factor * factor, width // factor * factor)
    # Sums of a few eight-bit values fit sixteen bits, which is several times faster and smaller than floats.
    if pixels.dtype == np.uint8 and factor <= 16 and min(inner) > 0 and valid.all():
        if inner == (height, width):
            return _mean_of_bytes(pixels, factor), np.ones((height // factor, width // factor), bool)
        parts = [
            [halve(pixels[rows, columns], valid[rows, columns], factor) for columns in _split(width, inner[1])]
            for rows in _split(height, inner[0])
        ]
        both = [np.concatenate([np.concatenate([p[k] for p in row], axis=1) for row in parts]) for k in (0, 1)]
        return both[0], both[1]
    return _mean(pixels, valid, factor)


def _split(length: int, inner: int) -> list[slice]:
    """Whole cells, then the rest where there is one."""
    return [slice(0, inner)] + ([slice(inner, length)] if inner < length else [])


def _mean_of_bytes(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """For whole cells of valid pixels."""
    bands = pixels.shape[2]
    if bands in (1, 3):  # what Pillow knows as a picture, it reduces many times faster
        picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if bands == 1 else pixels))
        reduced = np.asarray(picture.reduce(factor))
        return reduced.reshape(*reduced.shape[:2], bands)
    total = np.zeros((pixels.shape[0] // factor, pixels.shape[1] // factor, bands), np.uint16)
    for y in range(factor):
        for x in range(factor):
            total += pixels[y::factor, x::factor]
    return ((total + factor * factor // 2) // (factor * factor)).astype(np.uint8)


def _mean(pixels: NDArray[Any], valid: NDArray[np.bool_], factor: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """For any pixels and any validity."""
    height, width = valid.shape
    down, across = -(-height // factor), -(-width // factor)
    spare = (down * factor - height, across * factor - width)
    weight = np.pad(valid, ((0, spare[0]), (0, spare[1]))).reshape(down, factor, across, factor)
    count = weight.sum(axis=(1, 3))
    # Bytes and shorts are exact in single precision.
    exact = np.float32 if pixels.dtype.itemsize <= 2 else np.float64
    clean = np.where(valid[..., None], np.nan_to_num(pixels.astype(exact)), exact(0))
    padded = np.pad(clean, ((0, spare[0]), (0, spare[1]), (0, 0)))
    total = padded.reshape(down, factor, across, factor, -1).sum(axis=(1, 3), dtype=np.float64)
    mean = total / np.maximum(count, 1)[..., None]
    mean = mean if pixels.dtype.kind == "f" else np.floor(mean + 0.5)
    return mean.astype(pixels.dtype), count > 0
