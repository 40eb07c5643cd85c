"""Training crops, read from the images when they are needed. Crop i of a run is the same crop whoever asks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pipelines.augment import Augment
from pipelines.scenes import IGNORE, INDEX_STRIDE, Scene
from tiling import Box
from tiling.validity import filled

PLACES: Final = 2**16
"""How many places of a class are kept of a scene: crops are centred on a few thousand of them."""


class Places:
    """At most PLACES of the places that were added, each kept with the same chance."""

    def __init__(self) -> None:
        self.at = np.empty((0, 2), dtype=np.int32)
        """Rows and columns of the scene's view."""
        self.amount = 0
        """How many were added, kept or not."""
        self._lots = np.empty(0)

    def add(self, at: NDArray[np.int32], rng: np.random.Generator) -> None:
        """Adds (n, 2) rows and columns."""
        self.amount += len(at)
        self.at = np.concatenate([self.at, at])
        self._lots = np.concatenate([self._lots, rng.random(len(at))])
        if len(self.at) > PLACES:
            kept = np.sort(np.argpartition(self._lots, PLACES)[:PLACES])
            self.at, self._lots = self.at[kept], self._lots[kept]


class ClassPlaces:
    """Where the pixels of each class lie in each scene."""

    def __init__(self, places: list[list[Places]]) -> None:
        """For each scene and class."""
        self.at = [[found.at for found in scene] for scene in places]
        self.amounts = np.array([[found.amount for found in scene] for scene in places], dtype=np.float64)


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """An endless list of augmented crops: item i depends on the seed and on i alone, so a run resumes anywhere."""

    def __init__(
        self,
        scenes: Sequence[Scene],
        lookup: NDArray[np.uint8],
        fill: Sequence[float],
        augment: Augment | Sequence[Augment],
        balance: float,
        seed: int,
        border: float = 0.0,
        batch: int = 1,
    ) -> None:
        """With several augmentations, of other sides, `batch` items that follow each other have the same one."""
        self.scenes = scenes
        self.lookup = lookup
        self.fill = fill
        self.augments = [augment] if isinstance(augment, Augment) else augment
        self.batch = batch
        self.balance = balance
        self.seed = seed
        self.areas = np.array([scene.area.pixels for scene in scenes], dtype=np.float64)
        self.groups = np.unique([scene.group for scene in scenes], return_inverse=True)[1]
        # Looking for classes reads all of every scene: only for those who draw by class.
        found = [
            _places(scene, lookup, np.random.default_rng((seed, i, 4))) for i, scene in enumerate(scenes) if balance
        ]
        self.anywhere = ClassPlaces([places for places, _ in found])
        self.borders = ClassPlaces([places for _, places in found])
        self.border = border

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Raw pixels (bands, crop, crop) float32, and class indices (crop, crop) int64 with IGNORE."""
        rng = np.random.default_rng((self.seed, index))
        augment = self._augment(index)
        image, mask = self._draw(augment, rng)
        if rng.random() < augment.recipe.mix:
            _paste(image, mask, *self._draw(augment, rng), rng)
        return image, mask

    def _augment(self, index: int) -> Augment:
        """That of the item's batch."""
        if len(self.augments) == 1:
            return self.augments[0]
        rng = np.random.default_rng((self.seed, index // self.batch, 3))
        return self.augments[int(rng.integers(len(self.augments)))]

    def _draw(self, augment: Augment, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """One augmented crop and its classes."""
        scene, y, x = self._draw_centre(rng)
        side = augment.draw_side(rng)
        image, mask = read_padded(self.scenes[scene], self.lookup, self.fill, y - side // 2, x - side // 2, side)
        return augment(image, mask, rng)

    def _draw_centre(self, rng: np.random.Generator) -> tuple[int, int, int]:
        """Scene, row and column: on a pixel of a class drawn with equal chances, or anywhere.

        Groups of scenes (slides, tiles) have equal chances too, so that a large one does not drown the others.
        """
        if rng.random() < self.balance:
            places = self.borders if self.border and rng.random() < self.border else self.anywhere
            classes = np.flatnonzero(places.amounts.sum(axis=0))
            if len(classes):
                cls = rng.choice(classes)
                scene = self._draw_scene(places.amounts[:, cls], rng)
                y, x = places.at[scene][cls][rng.integers(len(places.at[scene][cls]))]
                return scene, int(y), int(x)
        scene = self._draw_scene(self.areas, rng)
        area = self.scenes[scene].area
        return scene, area.y + int(rng.integers(area.height)), area.x + int(rng.integers(area.width))

    def _draw_scene(self, amounts: NDArray[np.float64], rng: np.random.Generator) -> int:
        """A scene: first a group, all that have any of it alike, then one of its scenes in proportion to `amounts`."""
        of_group = np.bincount(self.groups, amounts)[self.groups]
        shares = np.divide(amounts, of_group, out=np.zeros_like(amounts), where=of_group > 0)
        return int(rng.choice(len(self.scenes), p=shares / shares.sum()))


def read_padded(
    scene: Scene, lookup: NDArray[np.uint8], fill: Sequence[float], top: int, left: int, side: int
) -> tuple[NDArray[np.generic], NDArray[np.uint8]]:
    """A square that touches the scene: (side, side, bands) mirrored beyond the edges, and classes, IGNORE there.

    Pixels without data hold `fill`, one value a band.
    """
    inside = Box(top, left, side, side).intersect(scene.area)
    assert inside is not None, "crops are centred on a pixel of the scene"
    margins = (
        (inside.y - top, top + side - inside.bottom),
        (inside.x - left, left + side - inside.right),
    )
    pixels = filled(scene.view.read(inside), scene.view.valid(inside), fill)
    image = np.pad(pixels, (*margins, (0, 0)), mode="symmetric")
    mask = np.pad(scene.targets(inside, lookup), margins, constant_values=IGNORE)
    return image, mask


def _paste(image: Tensor, mask: Tensor, other: Tensor, classes: Tensor, rng: np.random.Generator) -> None:
    """CutMix (Yun et al. 2019; for segmentation French et al. 2020): a rectangle of another crop, of 0.3 to 0.7 of its
    side, replaces the same one here, in place."""
    side = mask.shape[0]
    height, width = (int(side * share) for share in rng.uniform(0.3, 0.7, 2))
    y, x = int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1))
    rows, columns = slice(y, y + height), slice(x, x + width)
    image[:, rows, columns] = other[:, rows, columns]
    mask[rows, columns] = classes[rows, columns]


def _places(scene: Scene, lookup: NDArray[np.uint8], rng: np.random.Generator) -> tuple[list[Places], list[Places]]:
    """For each class, places of its pixels on every INDEX_STRIDE-th row and column of the scene: of all of them, and of
    those with another class above, below or beside them. What is too thin to lie on those is looked up everywhere."""
    classes = sorted(set(lookup.tolist()) - {IGNORE, IGNORE - 1})
    everywhere, borders = [Places() for _ in classes], [Places() for _ in classes]
    for box in scene.boxes():
        targets = scene.targets(box, lookup)
        coarse = targets[::INDEX_STRIDE, ::INDEX_STRIDE]
        met = _classes_in(coarse)
        for seen, step, looked_up in ((coarse, INDEX_STRIDE, met), (targets, 1, _classes_in(targets) - met)):
            chosen = looked_up.intersection(classes)
            if not chosen:
                continue
            edge = _meets_another(seen)
            for index in sorted(chosen):
                here, at = seen == index, classes.index(index)
                everywhere[at].add(_some_of(here, step, box, rng), rng)
                borders[at].add(_some_of(here & edge, step, box, rng), rng)
    return everywhere, borders


def _classes_in(targets: NDArray[np.uint8]) -> set[int]:
    return set(np.flatnonzero(np.bincount(targets.ravel(), minlength=256)).tolist())


def _some_of(chosen: NDArray[np.bool_], step: int, box: Box, rng: np.random.Generator) -> NDArray[np.int32]:
    """(n, 2) rows and columns of what is chosen of every `step`-th row and column of a box; of finer steps than
    INDEX_STRIDE as many as those would have."""
    at = (np.argwhere(chosen) * step + (box.y, box.x)).astype(np.int32)
    if step == INDEX_STRIDE:
        return at
    return rng.choice(at, math.ceil(len(at) * (step / INDEX_STRIDE) ** 2), replace=False)


def _meets_another(classes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(H, W): True where a neighbour has another known class."""
    edge = np.zeros(classes.shape, dtype=np.bool_)
    for here, there in (((slice(1, None),), (slice(-1),)), ((slice(None), slice(1, None)), (slice(None), slice(-1)))):
        differ = (classes[here] != classes[there]) & (classes[here] != IGNORE) & (classes[there] != IGNORE)
        edge[here] |= differ
        edge[there] |= differ
    return edge


def collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(B, bands, crop, crop) and (B, crop, crop)."""
    return torch.stack([item[0] for item in items]), torch.stack([item[1] for item in items])
