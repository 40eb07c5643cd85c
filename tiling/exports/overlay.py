"""Class colours laid over a picture: tints, crisp borders, hatching where there is no data. Arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tiling.geometry import Size
from tiling.labels import NODATA, LabelClass, Labels

OPACITY: Final = 0.45
"""Of a class's colour inside its borders; the border itself is opaque."""
_HATCH: Final = (10, 2)
"""Distance and width of the hatching's lines in pixels."""
_EMPTY, _STROKE = 238, 204
"""Grey values of what is no data, and of the hatching on it: light, as glass is, and no class looks like it."""


def is_background(c: LabelClass) -> bool:
    """Whether a class is what lies around the others: it is named so, and is left untinted."""
    return c.name.strip().lower() == "background"


def coarse_labels(labels: Labels, out: Size) -> NDArray[np.uint8]:
    """The whole label image at size `out`, (h, w): the class that covers most of each pixel, never a mixture.

    Enlarged pixels are repeated. Where classes cover the same, the first wins; no data wins only over nothing.
    """
    sizes = [Size(*array.shape) for array in labels.levels]
    fine = [i for i, size in enumerate(sizes) if size.height >= out.height and size.width >= out.width]
    level = fine[-1] if fine else 0
    values = labels.read(sizes[level].box, level)
    if not fine:
        return np.asarray(Image.fromarray(values).resize((out.width, out.height), Image.Resampling.NEAREST))
    best = np.zeros((out.height, out.width), np.uint8)
    winner = np.full((out.height, out.width), NODATA, np.uint8)
    for value in [*(c.value for c in labels.classes), NODATA]:
        covers = Image.fromarray((values == value).view(np.uint8) * np.uint8(255))
        cover = np.asarray(covers.resize((out.width, out.height), Image.Resampling.BOX))
        winner = np.where(cover > best, np.uint8(value), winner)
        best = np.maximum(best, cover)
    return winner


def overlay(
    picture: NDArray[np.uint8] | None, values: NDArray[np.uint8], classes: Sequence[LabelClass]
) -> NDArray[np.uint8]:
    """(h, w, 3): `picture` tinted by class values (h, w), or the bare colours where there is no picture."""
    height, width = values.shape
    colors = np.zeros((256, 3), np.float32)
    tint = np.zeros(256, np.float32)
    for c in classes:
        colors[c.value] = c.color
        tint[c.value] = 1.0 if picture is None else 0.0 if is_background(c) else OPACITY
    strength = tint[values]
    if picture is not None:
        strength[_borders(values) & (strength > 0)] = 1.0
    base = np.zeros((height, width, 3), np.float32) if picture is None else picture.astype(np.float32)
    painted = base + (colors[values] - base) * strength[..., None]
    empty = values == NODATA
    painted[empty] = _hatching(Size(height, width))[empty]
    return np.clip(painted + 0.5, 0, 255).astype(np.uint8)


def hatched(picture: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The picture (h, w, 3) with hatching where it is not valid (h, w)."""
    height, width = valid.shape
    return np.where(valid[..., None], picture, _hatching(Size(height, width)))


def _borders(values: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(h, w): True for a pixel that touches another value above, below, left or right."""
    border = np.zeros(values.shape, bool)
    across, along = values[1:] != values[:-1], values[:, 1:] != values[:, :-1]
    border[1:] |= across
    border[:-1] |= across
    border[:, 1:] |= along
    border[:, :-1] |= along
    return border


def _hatching(size: Size) -> NDArray[np.uint8]:
    """(h, w, 3): thin diagonal lines on light grey."""
    distance, width = _HATCH
    lines = (np.arange(size.height)[:, None] + np.arange(size.width)) % distance < width
    return np.where(lines, np.uint8(_STROKE), np.uint8(_EMPTY))[..., None].repeat(3, axis=2)
