"""Coarser pixels: the mean of what is data below each. Arrays in, arrays out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def halve(pixels: NDArray[Any], valid: NDArray[np.bool_], factor: int = 2) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """((h, w, bands), (h, w)) `factor` times smaller, rounded up: the mean of the valid pixels of each cell.

    A cell with no valid pixel is 0 and not valid. The dtype stays; a last row or column counts what is there.
    """
    height, width = valid.shape
    down, across = -(-height // factor), -(-width // factor)
    spare = (down * factor - height, across * factor - width)
    if valid.all() and not any(spare):
        cells = pixels.reshape(down, factor, across, factor, -1)
        # Sums of a few eight-bit values fit sixteen bits, which is several times faster than floats.
        if pixels.dtype == np.uint8 and factor <= 16:
            total = cells.sum(axis=(1, 3), dtype=np.uint16)
            return ((total + factor * factor // 2) // (factor * factor)).astype(np.uint8), np.ones((down, across), bool)
    weight = np.pad(valid, ((0, spare[0]), (0, spare[1]))).reshape(down, factor, across, factor)
    count = weight.sum(axis=(1, 3))
    clean = np.where(valid[..., None], np.nan_to_num(pixels.astype(np.float64)), 0.0)
    padded = np.pad(clean, ((0, spare[0]), (0, spare[1]), (0, 0)))
    total = padded.reshape(down, factor, across, factor, -1).sum(axis=(1, 3))
    mean = total / np.maximum(count, 1)[..., None]
    mean = mean if pixels.dtype.kind == "f" else np.floor(mean + 0.5)
    return mean.astype(pixels.dtype), count > 0
