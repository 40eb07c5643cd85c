"""Which pixels are data. Pure functions on arrays: a reader says what its file declares, and combines the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
_HUGE: Final = 1e37
"""Beyond this nothing is measured."""


def differs_from_nodata(pixels: NDArray[Any], nodata: Sequence[float | None]) -> Mask:
    """(H, W): True where at least one band of (H, W, bands) differs from its nodata value.

    This is GDAL's rule for a dataset: black (0, 0, 0) is no data where nodata is 0, pure green (0, 255, 0) is data. A
    band without a nodata value is always data; a NaN nodata value is left to `finite`.
    """
    data = np.zeros(pixels.shape[:2], dtype=np.bool_)
    for band, value in enumerate(nodata):
        if value is None or np.isnan(value):
            return np.ones_like(data)
        data |= ~_is(pixels[..., band], value)
    return data


def finite(pixels: NDArray[Any]) -> Mask:
    """(H, W): True where every band of (H, W, bands) is a number: not NaN and not infinite."""
    if pixels.dtype.kind != "f":
        return np.ones(pixels.shape[:2], dtype=np.bool_)
    return np.asarray(np.isfinite(pixels).all(axis=-1))


def opaque(alpha: NDArray[Any]) -> Mask:
    """(H, W): True where a pixel is not fully transparent."""
    return np.asarray(alpha > 0)


def combine(*masks: Mask | None) -> Mask:
    """(H, W): True where every mask that there is says data."""
    known = [mask for mask in masks if mask is not None]
    assert known, "at least one mask gives the shape"
    return np.asarray(np.logical_and.reduce(known))


def filled(pixels: NDArray[Any], valid: Mask, values: Sequence[float]) -> NDArray[Any]:
    """(H, W, bands) with one value a band, rounded for integers, where a pixel is no data; itself where all is data."""
    if valid.all():
        return pixels
    stand_in = np.asarray(values, dtype=np.float64)
    if pixels.dtype.kind != "f":
        stand_in = stand_in.round()
    return np.where(valid[..., None], pixels, stand_in.astype(pixels.dtype))


def _is(pixels: NDArray[Any], value: float) -> Mask:
    """Whether they are this nodata value; the largest floats are often written with few digits, like -3.4e+38."""
    held = _as(pixels.dtype, value)
    if pixels.dtype.kind == "f" and _HUGE < abs(held) < np.inf:
        return np.asarray(abs(pixels / held - 1) < 1e-2)
    return np.asarray(pixels == held)


def _as(dtype: np.dtype[Any], value: float) -> Any:
    """The value as the file's dtype holds it: nodata is written as a double, pixels may be float32."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return dtype.type(value)
    return value
