"""Segments whole labelled scenes through the same path as `segment`, and measures what is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.errors import RequestError
from pipelines.inference import Prediction, Predictor, fast_precision
from pipelines.measure import Borders, Calibration, Confusion, Panoptic, interval
from pipelines.scenes import IGNORE, Scene
from tiling import Box, Grid, blocks
from veca_core import Segmenter
from veca_core.card import Score

VALIDATION_BLOCK: Final = 2048
PIECE: Final = 8192
"""Scenes are measured in pieces of at most this side: borders and objects that one cuts count as two."""
See = Callable[[Scene, Box, NDArray[np.uint8], NDArray[np.uint8]], None]


@dataclass(slots=True)
class Measured:
    """What a network said of some scenes, against what is known of them."""

    classes: int
    scenes: list[Confusion] = field(default_factory=list)
    borders: Borders = field(init=False)
    calibration: Calibration = field(default_factory=Calibration)
    objects: dict[int, Panoptic] = field(default_factory=dict)
    """Of each class that has objects, by its index."""

    def __post_init__(self) -> None:
        self.borders = Borders(self.classes)

    @property
    def confusion(self) -> Confusion:
        """Over all scenes together."""
        total = Confusion(self.classes)
        for scene in self.scenes:
            total.counts += scene.counts
        return total

    def score(self, cores: int, names: Sequence[str]) -> Score:
        """What a model's card records, rounded to four digits; what was not measured is None."""
        total = self.confusion
        bounds = interval(np.stack([s.counts for s in self.scenes])) if len(self.scenes) > 1 else None
        return Score(
            cores=cores,
            mean_iou=round(total.mean_iou, 4),
            mean_dice=_mean(total.dice) or 0.0,
            iou=_named(names, total.iou),
            interval=(round(bounds[0], 4), round(bounds[1], 4)) if bounds else None,
            boundary_f1=_mean(self.borders.f1),
            ece=_number(self.calibration.error),
            pq=_mean(np.array([one.quality for one in self.objects.values()])),
        )


def check_window(window: int, multiple: int) -> None:
    """Raises RequestError for windows that are smaller than the `multiple` that sides of windows are of."""
    if window < multiple:
        raise RequestError(f"windows of {window} px are smaller than one patch of {multiple} px; make window larger")


def validate(
    network: nn.Module,
    scenes: Sequence[Scene],
    lookup: NDArray[np.uint8],
    device: torch.device,
    *,
    cores: int,
    window: int,
    multiple: int,
    thorough: bool = False,
    tick: Callable[[], None] = lambda: None,
    see: See | None = None,
) -> Measured:
    """Overlap on all scenes, at the pixels of their views; `thorough`: borders, calibration and objects too.

    `see` is shown each piece of a scene with the class indices (H, W) that are true and that were called.

    `network` is a Segmenter, or what takes and gives the same; its windows have sides that are multiples of `multiple`.
    """
    check_window(window, multiple)
    segmenter = cast(Segmenter, network.eval())
    predictor = Predictor(segmenter, cores, 1, device, fast_precision(device))
    measured = Measured(segmenter.classes)
    if thorough:
        measured.objects = {cls: Panoptic() for cls in sorted(_object_classes(scenes, lookup))}
    for scene in scenes:
        measured.scenes.append(Confusion(segmenter.classes))
        grid = Grid.over(scene.view.size, window, window // 8, multiple)
        for piece in scene.boxes(PIECE):
            truth = scene.targets(piece, lookup)
            called, confidence = _called(predictor, scene, grid, piece)
            measured.scenes[-1].add(truth, called)
            if see:
                see(scene, piece, truth, called)
            if thorough:
                measured.borders.add(truth, called)
                measured.calibration.add(truth, called, confidence)
                _add_objects(measured, scene, piece, truth, called)
        tick()
    return measured


def _called(
    predictor: Predictor, scene: Scene, grid: Grid, piece: Box
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Class indices (H, W) and the probability of each, IGNORE and 0 where nothing was seen."""
    indices = np.arange(predictor.network.classes, dtype=np.uint8)
    called = np.empty((piece.height, piece.width), dtype=np.uint8)
    confidence = np.empty((piece.height, piece.width), dtype=np.float32)

    def note(block: Box, prediction: Prediction) -> None:
        part = block.relative_to(piece).slices
        called[part] = prediction.labels(indices, IGNORE)
        confidence[part] = prediction.probabilities.max(axis=0)

    parts = blocks(piece.size, VALIDATION_BLOCK)
    inside = (Box(part.y + piece.y, part.x + piece.x, part.height, part.width) for part in parts)
    for _ in predictor.predict_blocks(scene.view, grid, inside, note):
        pass
    return called, confidence


def _object_classes(scenes: Sequence[Scene], lookup: NDArray[np.uint8]) -> set[int]:
    """Indices of the classes that any true object of any scene is of."""
    found: set[int] = set()
    for scene in scenes:
        if scene.objects is None:
            continue
        for piece in scene.boxes(PIECE):
            found |= set(np.unique(_kinds(scene.objects.values(piece), scene.targets(piece, lookup))).tolist())
    return found - {IGNORE}


def _kinds(objects: NDArray[Any], truth: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) the class of the object that a pixel is in: that of most of its known pixels; IGNORE in none."""
    inside = (objects > 0) & (truth != IGNORE)
    kinds = np.full(truth.shape, IGNORE, dtype=np.uint8)
    if not inside.any():
        return kinds
    ids, at = np.unique(objects[inside], return_inverse=True)
    classes = truth[inside].astype(np.intp)
    width = int(classes.max()) + 1
    counts = np.bincount(at * width + classes, minlength=len(ids) * width).reshape(len(ids), width)
    kinds[inside] = counts.argmax(axis=1)[at]
    return kinds


def _add_objects(
    measured: Measured, scene: Scene, piece: Box, truth: NDArray[np.uint8], called: NDArray[np.uint8]
) -> None:
    """Objects and calls of each class; one that has objects elsewhere may be called in vain."""
    if scene.objects is None:
        return
    objects = scene.objects.values(piece)
    known, kinds = truth != IGNORE, _kinds(objects, truth)
    for cls, counted in measured.objects.items():
        counted.add(np.where(kinds == cls, objects, 0), called == cls, known)


def _named(names: Sequence[str], values: NDArray[np.float64]) -> dict[str, float]:
    return {name: round(float(v), 4) for name, v in zip(names, values, strict=True) if not np.isnan(v)}


def _mean(values: NDArray[np.float64]) -> float | None:
    return None if np.isnan(values).all() else round(float(np.nanmean(values)), 4)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)
