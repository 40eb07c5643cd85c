"""Labelled images: pairs of image and mask, checked, grouped and split so that nothing leaks."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.config import DataRecipe
from pipelines.errors import RequestError
from pipelines.images import is_image_name
from tiling import Box, Source, blocks, open_image

IGNORE: Final = 255
"""Mask value, and class index, of a pixel that is neither trained on nor scored."""
INDEX_STRIDE: Final = 4
"""Every how many mask pixels, on each axis, class places are looked up for balanced sampling."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One image with its mask, both opened; masks hold class values."""

    name: str
    group: str
    image: Source
    mask: Source

    def targets(self, box: Box, lookup: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W) class indices of a box, IGNORE where the mask says nothing or the image has no data."""
        indices = lookup[self.mask.read(box)[..., 0]]
        return np.where(self.image.valid(box), indices, IGNORE).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Split:
    """Scenes to learn from and scenes held back; no group is in both."""

    train: tuple[Scene, ...]
    validation: tuple[Scene, ...]


def find_scenes(data: DataRecipe) -> tuple[Scene, ...]:
    """Pairs the files of two folders by name; raises RequestError for what does not pair or fit."""
    for folder in (data.images, data.masks):
        if not folder.is_dir():
            raise RequestError(f"there is no folder {folder}; a data set has a folder of images and one of masks")
    masks = {path.stem: path for path in sorted(data.masks.iterdir()) if is_image_name(path)}
    images = [path for path in sorted(data.images.iterdir()) if is_image_name(path)]
    if not images:
        raise RequestError(f"{data.images} holds no image; put the images to learn from there")
    return tuple(_pair(image, masks, data) for image in images)


def split_scenes(scenes: tuple[Scene, ...], data: DataRecipe) -> Split:
    """Holds back whole groups, those named by the recipe or about a fifth of them."""
    groups = sorted({scene.group for scene in scenes})
    held = set(data.validate_on) or _a_fifth(groups)
    unknown = held - set(groups)
    if unknown:
        raise RequestError(f"no image belongs to the validation group {sorted(unknown)}; the groups are {groups[:20]}")
    split = Split(
        tuple(scene for scene in scenes if scene.group not in held),
        tuple(scene for scene in scenes if scene.group in held),
    )
    if not split.train or not split.validation:
        raise RequestError(
            f"{len(groups)} group(s) of images leave nothing to "
            f"{'learn from' if not split.train else 'validate on'}; two groups at least are needed"
        )
    return split


def class_lookup(values: list[int], ignore: tuple[int, ...]) -> NDArray[np.uint8]:
    """(256,) mask value -> class index; IGNORE for ignored values, 254 for values that no class has."""
    lookup = np.full(256, IGNORE - 1, dtype=np.uint8)
    lookup[[*ignore, IGNORE]] = IGNORE
    lookup[values] = np.arange(len(values))
    return lookup


def check_masks(scenes: tuple[Scene, ...], values: list[int], ignore: tuple[int, ...]) -> NDArray[np.int64]:
    """Reads every mask once: (scenes, classes) pixel counts; raises RequestError for values that no class has."""
    lookup = class_lookup(values, ignore)
    counts = np.zeros((len(scenes), len(values)), dtype=np.int64)
    for i, scene in enumerate(scenes):
        seen = np.zeros(256, dtype=np.int64)
        for box in blocks(scene.mask.levels[0].size, 4096):
            seen += np.bincount(scene.mask.read(box)[..., 0].ravel(), minlength=256)
        foreign = [int(value) for value in np.flatnonzero(seen) if lookup[value] == IGNORE - 1]
        if foreign:
            raise RequestError(
                f"{scene.mask.path} holds the values {foreign}, which are no class and not ignored; "
                f"the classes have the values {values}"
            )
        counts[i] = seen[values]
    return counts


def _pair(image: Path, masks: dict[str, Path], data: DataRecipe) -> Scene:
    if image.stem not in masks:
        raise RequestError(f"{image} has no mask: expected {data.masks / image.stem} with any ending")
    match = re.search(data.group, image.stem)
    group = match[match.re.groups and 1] if match else None
    if group is None:
        raise RequestError(f"the group pattern {data.group!r} does not match the image name {image.stem!r}")
    scene = Scene(image.stem, group, open_image(image), open_image(masks[image.stem]))
    size, mask = scene.image.levels[0].size, scene.mask.levels[0].size
    if size != mask:
        raise RequestError(f"{image.stem}: the image is {size} but its mask is {mask}; they must be the same size")
    if len(scene.mask.bands) != 1 or scene.mask.dtype != np.uint8:
        found = f"{len(scene.mask.bands)} band(s) of {scene.mask.dtype}"
        raise RequestError(f"{scene.mask.path} holds {found}; a mask has one 8-bit band of class values")
    return scene


def _a_fifth(groups: list[str]) -> set[str]:
    """The same groups every time, whatever else is added: those with the smallest hashes."""
    order = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return set(order[: max(1, round(len(order) / 5))]) if len(order) > 1 else set()
