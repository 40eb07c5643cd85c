"""Scores of a segmentation that grow piece by piece: overlap, borders, calibration, and objects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.scenes import IGNORE

REACH: Final = 3
"""Pixels that a border may be off and still count as found."""
BINS: Final = 15
RESAMPLES: Final = 1000


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
        return iou_of(self.counts)

    @property
    def dice(self) -> NDArray[np.float64]:
        """(classes,) 2 IoU / (1 + IoU)."""
        return 2 * self.iou / (1 + self.iou)

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that are there or were called."""
        return float(mean_of(self.iou))


@dataclass(slots=True)
class Borders:
    """Boundary F1 (Csurka et al. 2013): how much of a class's border lies within REACH pixels of the other one's.

    The edge of the image, and of what is not known, is no border.
    """

    classes: int
    found: NDArray[np.int64] = field(init=False)
    """(classes, 2): true border pixels that were met, called ones that meet a true one."""
    total: NDArray[np.int64] = field(init=False)
    """(classes, 2): true border pixels, called ones."""

    def __post_init__(self) -> None:
        self.found = np.zeros((self.classes, 2), dtype=np.int64)
        self.total = np.zeros((self.classes, 2), dtype=np.int64)

    def add(self, truth: NDArray[np.uint8], called: NDArray[np.uint8]) -> None:
        """Adds a scene, or a piece of one, of class indices (H, W)."""
        known = truth != IGNORE
        for cls in np.union1d(truth, called[known]):
            if cls >= self.classes:
                continue
            there, said = _border(truth == cls, known), _border(called == cls, known)
            self.total[cls] += there.sum(), said.sum()
            self.found[cls] += (there & _near(said)).sum(), (said & _near(there)).sum()

    @property
    def f1(self) -> NDArray[np.float64]:
        """(classes,) harmonic mean of recall and precision; NaN for a class without any border."""
        shares = np.divide(self.found, self.total, out=np.zeros(self.found.shape), where=self.total > 0)
        both = shares.sum(axis=1)
        f1: NDArray[np.float64] = np.divide(2 * shares.prod(axis=1), both, out=np.zeros(self.classes), where=both > 0)
        return np.where(self.total.sum(axis=1) > 0, f1, np.nan)


@dataclass(slots=True)
class Calibration:
    """Expected calibration error (Guo et al. 2017), BINS equal bins: how far confidence and accuracy are apart."""

    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, BINS)))
    """For each bin: pixels, their confidence, those that were right."""

    def add(self, truth: NDArray[np.uint8], called: NDArray[np.uint8], confidence: NDArray[np.float32]) -> None:
        """Adds pixels with the probability of the class that each was called."""
        looked = (truth != IGNORE) & (called != IGNORE)
        sure = confidence[looked].astype(np.float64)
        bins = np.minimum((sure * BINS).astype(np.intp), BINS - 1)
        right = truth[looked] == called[looked]
        for row, weights in zip(self.sums, (np.ones_like(sure), sure, right), strict=True):
            row += np.bincount(bins, weights, minlength=BINS)

    @property
    def error(self) -> float:
        """0 where confidence says how often a call is right; NaN without pixels."""
        count, sure, right = self.sums
        return float(np.abs(sure - right).sum() / count.sum()) if count.sum() else float("nan")


@dataclass(slots=True)
class Panoptic:
    """Panoptic quality (Kirillov et al. 2019) of one class: called objects are connected components of its pixels."""

    overlap: float = 0.0
    """IoU of matched objects, summed."""
    matched: int = 0
    missed: int = 0
    invented: int = 0

    def add(self, objects: NDArray[Any], called: NDArray[np.bool_], known: NDArray[np.bool_]) -> None:
        """Adds true objects (H, W), 0 where there is none, and where the class was called."""
        said, count = ndimage.label(called & known)
        codes, sizes = np.unique(objects[known].astype(np.int64) * (count + 1) + said[known], return_counts=True)
        ids, there = np.unique(codes // (count + 1), return_inverse=True)
        said = codes % (count + 1)
        areas, calls = np.bincount(there, sizes), np.bincount(said, sizes, minlength=count + 1)
        both = (ids[there] != 0) & (said != 0)
        iou = sizes[both] / (areas[there] + calls[said] - sizes)[both]
        pairs = iou > 0.5  # at most one partner each
        self.overlap += float(iou[pairs].sum())
        self.matched += int(pairs.sum())
        self.missed += int((ids != 0).sum() - pairs.sum())
        self.invented += count - int(pairs.sum())

    @property
    def quality(self) -> float:
        """Mean IoU of the matched times their F1; NaN where there is no object at all."""
        weight = self.matched + (self.missed + self.invented) / 2
        return self.overlap / weight if weight else float("nan")


def iou_of(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(..., classes) from counts (..., classes, classes + 1)."""
    hit = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)
    union = counts.sum(axis=-1) + counts[..., :-1].sum(axis=-2) - hit
    iou: NDArray[np.float64] = np.divide(hit, union, out=np.full(hit.shape, np.nan), where=union > 0)
    return iou


def mean_of(iou: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis, of what is a number; 0 where nothing is."""
    count = (~np.isnan(iou)).sum(axis=-1)
    return np.asarray(np.nansum(iou, axis=-1) / np.maximum(count, 1))


def interval(scenes: NDArray[np.int64], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean IoU over images: (scenes, classes, classes + 1) confusion counts.

    Percentiles of RESAMPLES draws of as many images, with replacement (Efron 1979).
    """
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(scenes), np.full(len(scenes), 1 / len(scenes)), RESAMPLES)
    low, high = np.percentile(mean_of(iou_of(np.tensordot(drawn, scenes, axes=1))), (2.5, 97.5))
    return float(low), float(high)


def _border(mask: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask with a known pixel outside it above, below, left or right."""
    border: NDArray[np.bool_] = mask & known & ndimage.binary_dilation(~mask & known)
    return border


def _near(border: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels at most REACH away."""
    y, x = np.mgrid[-REACH : REACH + 1, -REACH : REACH + 1]
    near: NDArray[np.bool_] = ndimage.binary_dilation(border, y**2 + x**2 <= REACH**2)
    return near
