"""Linear resampling whose result does not depend on where the image was cut: NumPy in, NumPy out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_ROWS = 16
"""New rows computed at once: few, so that what is summed stays in the processor's cache."""
_Mix: TypeAlias = list[tuple[NDArray[np.intp], NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class Taps:
    """Along one axis: which source pixels each new pixel mixes, and how much of each."""

    first: int
    """First source pixel that is needed."""
    stop: int
    """One past the last."""
    index: NDArray[np.intp]
    """(n, K): counted from `first`."""
    weight: NDArray[np.float64]
    """(n, K): not negative, each row sums to 1."""

    @classmethod
    def at(cls, start: int, stop: int, factor: float, length: int) -> Taps:
        """For new pixels start..stop-1, each `factor` source pixels large, over a source of `length` pixels.

        A triangle filter as wide as the larger of the two pixels, cut off and renormalised at the image's edge: what
        Pillow's BILINEAR computes. Every number depends on the new pixel's place in the image alone, and K on `factor`
        alone, so sums run in the same order whatever start and stop are.
        """
        support = max(factor, 1.0)
        centre = (np.arange(start, stop) + 0.5) * factor
        index = np.ceil(centre - support - 0.5).astype(np.intp)[:, None] + np.arange(math.ceil(2 * support) + 1)
        weight = np.maximum(0.0, 1.0 - np.abs(index + 0.5 - centre[:, None]) / support)
        weight[(index < 0) | (index >= length)] = 0.0
        weight /= weight.sum(axis=1, keepdims=True)
        index = np.clip(index, 0, length - 1)
        first = int(index.min())
        return cls(first, int(index.max()) + 1, index - first, weight)


def resample(image: NDArray[Any], y: Taps, x: Taps) -> NDArray[Any]:
    """(H, W, bands) to (len(y), len(x), bands), as float32, or float64 for dtypes that float32 does not hold.

    `image` is the source region rows y.first..y.stop, columns x.first..x.stop.
    """
    precision = np.result_type(image.dtype, np.float32)
    bands = image.shape[-1]
    out = np.zeros((len(y.weight), len(x.weight), bands), precision)
    down = list(zip(y.index.T, y.weight.T.astype(precision)[..., None, None], strict=True))
    across = list(zip(x.index.T, np.repeat(x.weight.T.astype(precision)[..., None], bands, axis=-1), strict=True))
    for start in range(0, len(out), _ROWS):
        part = slice(start, start + _ROWS)
        _mix(image, down, across, part, out[part])
    return out


def resample_masked(
    image: NDArray[Any], valid: NDArray[np.bool_], y: Taps, x: Taps
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The same, and (H, W) validity: mixes valid pixels only, and a new pixel is valid where half of it is.

    Without a valid source pixel a new pixel is 0. Where all of them are valid it is bit for bit that of `resample`.
    """
    if valid.all():
        return resample(image, y, x), np.ones((len(y.weight), len(x.weight)), dtype=np.bool_)
    share = resample(valid[..., None].astype(np.float32), y, x)
    touched = resample((~valid)[..., None].astype(np.float32), y, x) > 0
    value = resample(np.where(valid[..., None], image, image.dtype.type(0)), y, x)
    mean = np.divide(value, share, out=np.zeros_like(value), where=share > 0)
    return np.where(touched, mean, value), np.asarray(share[..., 0] >= 0.5)


def to_dtype(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Rounds and clips to an integer dtype; only converts to a float one."""
    if dtype.kind == "f":
        return np.asarray(values, dtype)
    limits = np.iinfo(dtype)
    return np.asarray(np.clip(np.rint(values), limits.min, limits.max), dtype)


def _mix(image: NDArray[Any], down: _Mix, across: _Mix, part: slice, out: NDArray[Any]) -> None:
    """Adds the new rows `part` to `out`, (rows, W, bands): first the mixture of rows, then that of columns.

    One multiplication and one addition at a time: a matrix product may sum in another order for another size.
    """
    rows = np.zeros((out.shape[0], *image.shape[1:]), out.dtype)
    for index, weight in down:
        rows += np.multiply(image[index[part]], weight[part], dtype=out.dtype)
    term = np.empty_like(out)
    for index, weight in across:
        np.take(rows, index, axis=1, out=term, mode="clip")
        term *= weight
        out += term
