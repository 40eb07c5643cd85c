"""Scores of a segmentation, from a confusion matrix that grows block by block."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipelines.scenes import IGNORE
from veca_core.card import Score


@dataclass(slots=True)
class Confusion:
    """counts[t, p]: pixels of true class t that were called p. The last column counts pixels left without a call."""

    classes: int
    counts: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.classes, self.classes + 1), dtype=np.int64)

    def add(self, truth: NDArray[np.uint8], called: NDArray[np.uint8]) -> None:
        """Adds pixels of class indices; IGNORE in `truth` is skipped, IGNORE in `called` is a miss."""
        known = truth != IGNORE
        calls = np.minimum(called[known], self.classes).astype(np.int64)
        joint = truth[known].astype(np.int64) * (self.classes + 1) + calls
        self.counts += np.bincount(joint, minlength=self.counts.size).reshape(self.counts.shape)

    @property
    def iou(self) -> NDArray[np.float64]:
        """(classes,) intersection over union; NaN for a class that is neither there nor called."""
        hit = np.diag(self.counts).astype(np.float64)
        union = self.counts.sum(axis=1) + self.counts[:, :-1].sum(axis=0) - hit
        iou: NDArray[np.float64] = np.divide(hit, union, out=np.full(self.classes, np.nan), where=union > 0)
        return iou

    @property
    def dice(self) -> NDArray[np.float64]:
        """(classes,) 2 IoU / (1 + IoU)."""
        return 2 * self.iou / (1 + self.iou)

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that are there or were called."""
        return float(np.nanmean(self.iou)) if not np.isnan(self.iou).all() else 0.0

    def score(self, cores: int, names: list[str]) -> Score:
        """What a model card records, rounded to four digits."""
        dice = self.dice
        return Score(
            cores=cores,
            mean_iou=round(self.mean_iou, 4),
            mean_dice=round(float(np.nanmean(dice)), 4) if not np.isnan(dice).all() else 0.0,
            iou={name: round(float(v), 4) for name, v in zip(names, self.iou, strict=True) if not np.isnan(v)},
        )
