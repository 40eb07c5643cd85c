"""A look at what there is to learn from, before anything is learned: its bands, and what will hardly be meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.bands import match_bands
from pipelines.config import TrainRecipe
from pipelines.errors import RequestError
from pipelines.scenes import Scene, Split, held_back, held_before
from veca_core import load_card
from veca_core.card import Bands
from veca_core.weights import CARD

MEASURED: Final = 1024
MEASURED_BOXES: Final = 36
"""Bands are measured in at most about so many boxes of that side a scene."""


def measure_bands(scenes: Sequence[Scene]) -> Bands:
    """Band names of the first scene; mean and deviation of every band over every 16th of the valid pixels, in some
    boxes of each scene where it is large."""
    first = scenes[0].image
    match_bands((scene.image for scene in scenes), first.bands, str(first.dtype), reader=first.path)
    sums = np.zeros((3, len(first.bands)))
    for scene in scenes:
        boxes = list(scene.boxes(MEASURED))
        for box in boxes[:: -(-len(boxes) // MEASURED_BOXES)]:
            pixels = scene.view.read(box)[::4, ::4].astype(np.float64)
            pixels = pixels[scene.view.valid(box)[::4, ::4]]
            sums += [np.full(len(first.bands), len(pixels)), pixels.sum(axis=0), (pixels**2).sum(axis=0)]
    mean = sums[1] / np.maximum(sums[0], 1)
    deviation = np.sqrt(np.maximum(sums[2] / np.maximum(sums[0], 1) - mean**2, 1e-12))
    rounded = [tuple(float(f"{v:.6g}") for v in values) for values in (mean, deviation)]
    return Bands(names=first.bands, mean=rounded[0], std=rounded[1], dtype=str(first.dtype))


def doubts(recipe: TrainRecipe, scenes: Sequence[Scene], counts: NDArray[np.int64], split: Split) -> Iterator[str]:
    """What may be trained but will hardly be meant, a line each; `counts`: pixels of each scene and class.

    Raises RequestError for a class of which there is no pixel at all, or images of which nothing is known.
    """
    chosen = {id(scene) for scene in split.train}
    learned = [id(scene) in chosen for scene in scenes]
    held = {id(scene) for scene in split.validation}
    for side, count in (
        ("to learn from", counts[learned].sum()),
        ("held back", counts[[id(scene) in held for scene in scenes]].sum()),
    ):
        if not count:
            raise RequestError(
                f"no image {side} shows a pixel of any class: all is ignored there; hold back other groups "
                "(data.validate_on), or label more"
            )
    for cls, everywhere, here in zip(recipe.classes, counts.sum(axis=0), counts[learned].sum(axis=0), strict=True):
        if not everywhere:
            raise RequestError(
                f"no image shows the class {cls.name!r} (value {cls.value}); remove it from the recipe's classes"
            )
        if not here:
            yield (
                f"warning: no image to learn from shows the class {cls.name!r} (value {cls.value}), so it will never "
                "be found; hold back other groups, or remove it"
            )
    start = recipe.network.pretrained
    if isinstance(start, Path) and (start / CARD).is_file():
        now = held_back(split.validation, recipe.data.blocks)
        if before := held_before(load_card(start).validation, now, scenes):
            yield (
                f"warning: the model that training goes on from was made with {before} held back, and "
                "may have learned from what is held back now: the score would be too good; hold back the same"
            )
    small = sum(min(scene.area.height, scene.area.width) < max(recipe.schedule.crops) for scene in split.train)
    if small:
        yield (
            f"note: {small} of {len(split.train)} images to learn from are smaller than a crop of "
            f"{max(recipe.schedule.crops)} px; the rest of such a crop is a mirror image that is not learned from"
        )
