"""Labelled images: each with what is known of it, checked, grouped and split so that nothing leaks."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import shapely
from numpy.typing import NDArray

from pipelines.config import DataRecipe
from pipelines.errors import RequestError
from pipelines.ground import alike, first_overlap
from pipelines.images import is_image_name
from pipelines.truth import UNKNOWN, VECTOR_ENDINGS, MaskTruth, ShapeTruth, Truth, read_shapes
from tiling import Box, Size, Source, Spacing, View, blocks, open_image
from veca_core.card import ClassInfo, PixelSize

IGNORE: Final = UNKNOWN
"""Mask value, and class index, of a pixel that is neither trained on nor scored."""
INDEX_STRIDE: Final = 4
"""Every how many pixels, on each axis, class places are looked up for balanced sampling."""
READ: Final = 4096
"""Side of the boxes in which whole scenes are gone through."""
LOOKED_AT: Final = 256
"""Side of the middle by which copies of an image are found."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A part of an image, or all of it, at the model's spacing, with what is known of its pixels."""

    name: str
    group: str
    view: View
    truth: Truth
    area: Box
    """The part of the view that is this scene; nothing beyond it is ever read for training."""
    objects: MaskTruth | None = None
    """An id for each object, 0 where there is none."""

    @classmethod
    def whole(cls, name: str, group: str, image: Source, mask: Source) -> Scene:
        """All of an image at its own pixels, with a mask of the same size."""
        view = View.open(image)
        return cls(name, group, view, MaskTruth(mask, view), view.size.box)

    @property
    def image(self) -> Source:
        return self.view.source

    def targets(self, box: Box, lookup: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W) class indices of a box of the view, IGNORE where nothing is known or the image has no data."""
        indices = lookup[self.truth.values(box)]
        return np.where(self.view.valid(box), indices, IGNORE).astype(np.uint8)

    def boxes(self, side: int = READ) -> Iterator[Box]:
        """Cuts the area into boxes of the view, row by row."""
        for box in blocks(self.area.size, side):
            yield Box(box.y + self.area.y, box.x + self.area.x, box.height, box.width)


@dataclass(frozen=True, slots=True)
class Split:
    """Scenes to learn from and scenes held back; no group is in both."""

    train: tuple[Scene, ...]
    validation: tuple[Scene, ...]


def find_scenes(
    data: DataRecipe, *, classes: Sequence[ClassInfo] = (), spacing: PixelSize | None = None
) -> tuple[Scene, ...]:
    """Pairs images with their masks or shapes by name, at a spacing (None: their own pixels).

    `classes` give the values of shapes' class names. Raises RequestError for what does not pair or fit.
    """
    for folder in (data.images, data.masks or data.shapes):
        if folder is not None and not folder.is_dir() and folder != data.shapes:
            raise RequestError(f"there is no folder {folder}; a data set has a folder of images and one of masks")
    images = [path for path in sorted(data.images.iterdir()) if is_image_name(path)]
    if not images:
        raise RequestError(f"{data.images} holds no image; put the images to learn from there")
    values = {c.name: c.value for c in classes}
    wanted = Spacing.square(spacing.value, spacing.unit) if spacing else None
    scenes = [_scene(image, data, values, wanted) for image in images]
    if _shares_shapes(data) and all(isinstance(s.truth, ShapeTruth) and not len(s.truth.shapes) for s in scenes):
        raise RequestError(
            f"no shape of {data.shapes} that has a class touches any of the {len(images)} image(s) of {data.images}; "
            "are they of another place, or another CRS?"
        )
    if not data.blocks:
        return tuple(scenes)
    return tuple(part for scene in scenes for part in _cut(scene, data.blocks, apart=data.group is None))


def split_scenes(scenes: tuple[Scene, ...], data: DataRecipe) -> Split:
    """Holds back whole groups, those named by the recipe or about a fifth of them."""
    groups = sorted({scene.group for scene in scenes})
    held = set(data.validate_on) or _a_fifth(groups)
    unknown = held - set(groups)
    if unknown:
        raise RequestError(f"no image belongs to the validation group {sorted(unknown)}; the groups are {groups[:20]}")
    split = Split(
        _few([scene for scene in scenes if scene.group not in held], data.limit),
        tuple(scene for scene in scenes if scene.group in held),
    )
    if not split.train or not split.validation:
        way = (
            "data.blocks cuts a large image into several"
            if not data.blocks
            else "without data.group each square is one"
        )
        raise RequestError(
            f"{len(groups)} group(s) of images leave nothing to "
            f"{'learn from' if not split.train else 'validate on'}; two groups at least are needed, and {way}"
        )
    check_leaks(split)
    return split


def held_back(scenes: Sequence[Scene], blocks: int | None = None) -> str:
    """The groups of scenes that were held back, as a model's card says it: of many, the first and a hash of all.

    `blocks`: the side of the squares that images were cut into; others of the same names lie elsewhere.
    """
    groups = sorted({scene.group for scene in scenes})
    more = f" and {len(groups) - 20} more ({_hash('/'.join(groups))[:12]})" if len(groups) > 20 else ""
    squares = f", in squares of {blocks} px" if blocks else ""
    return f"held back: {', '.join(groups[:20])}{more}{squares}"


def held_before(before: str, held: str, scenes: Sequence[Scene]) -> str:
    """Which groups of these scenes a model was made with held back, where others of them are `held` now: it may have
    learned from those. Empty where there are none, or the model is of other scenes. Both as `held_back` words them."""
    kept, now = (set(words.removeprefix("held back: ").split(", ")) for words in (before, held))
    return "" if now <= kept else ", ".join(sorted(kept & {scene.group for scene in scenes}))


def check_leaks(split: Split) -> None:
    """Raises RequestError where a held-back scene shows what is also learned from: the same pixels or place."""
    looks: dict[tuple[Size, str], list[Source]] = {}
    for image in _images(split.train):
        looks.setdefault(_look(image), []).append(image)
    for image in _images(split.validation):
        for learned in looks.get(_look(image), ()):
            if image.path != learned.path and _same_pixels(image, learned):
                raise RequestError(
                    f"{image.path} is held back and {learned.path} is learned from, but they are the same image; "
                    "remove one, or give both the same group"
                )
    if pair := _first_overlap(split):
        raise RequestError(
            f"{pair[0].name} is held back and {pair[1].name} is learned from, but they overlap on the ground or in the "
            "image; give both the same group"
        )


def class_lookup(values: list[int], ignore: tuple[int, ...]) -> NDArray[np.uint8]:
    """(256,) mask value -> class index; IGNORE for ignored values, 254 for values that no class has.

    What is ignored may be a class of the model that is scored.
    """
    lookup = np.full(256, IGNORE - 1, dtype=np.uint8)
    lookup[values] = np.arange(len(values))
    lookup[[*ignore, IGNORE]] = IGNORE
    return lookup


def check_masks(scenes: tuple[Scene, ...], values: list[int], ignore: tuple[int, ...]) -> NDArray[np.int64]:
    """Reads every mask once: (scenes, classes) pixel counts; raises RequestError for values that no class has."""
    lookup = class_lookup(values, ignore)
    counts = np.zeros((len(scenes), len(values)), dtype=np.int64)
    for i, scene in enumerate(scenes):
        seen = np.zeros(256, dtype=np.int64)
        for box in scene.boxes():
            seen += np.bincount(scene.truth.values(box).ravel(), minlength=256)
        foreign = [int(value) for value in np.flatnonzero(seen) if lookup[value] == IGNORE - 1]
        if foreign:
            raise RequestError(
                f"{scene.truth.path} holds the values {foreign}, which are no class and not ignored; "
                f"the classes have the values {values}"
            )
        counts[i] = seen[values]
    return counts


def _scene(image: Path, data: DataRecipe, values: dict[str, int], spacing: Spacing | None) -> Scene:
    view = View.open(open_image(image), spacing)
    if data.shapes is not None:
        shared = _shares_shapes(data)
        place = data.shapes if shared else _beside(image, data.shapes, VECTOR_ENDINGS)
        truth: Truth = read_shapes(place, view, values, data.attribute, data.elsewhere, shared=shared, layer=data.layer)
    else:
        assert data.masks is not None
        truth = _mask(image, view, data.masks)
    objects = _mask(image, view, data.instances, "ui") if data.instances is not None else None
    return Scene(image.stem, _group(image.stem, data.group), view, truth, view.size.box, objects)


def _group(name: str, pattern: str | None) -> str:
    """What a pattern finds in an image's name; all of it where there is none."""
    match = re.search(pattern or "(.+)", name)
    group = match[match.re.groups and 1] if match else None
    if group is None:
        raise RequestError(f"the group pattern {pattern!r} does not match the image name {name!r}")
    return group


def _shares_shapes(data: DataRecipe) -> bool:
    """Whether one vector file says what all images show."""
    return data.shapes is not None and not data.shapes.is_dir()


def _mask(image: Path, view: View, folder: Path, kinds: str = "") -> MaskTruth:
    """An 8-bit mask, or one of any of the NumPy `kinds`."""
    mask = open_image(_beside(image, folder), indexed=True)
    size, found = view.source.levels[0].size, mask.levels[0].size
    if size != found:
        raise RequestError(f"{image.stem}: the image is {size} but its mask is {found}; they must be the same size")
    if len(mask.bands) != 1 or (mask.dtype.kind not in kinds if kinds else mask.dtype != np.uint8):
        held = f"{len(mask.bands)} band(s) of {mask.dtype}"
        wanted = "band of whole numbers" if kinds else "8-bit band of class values"
        raise RequestError(f"{mask.path} holds {held}; a mask has one {wanted}")
    if not alike(mask.georef, view.source.georef, view.source.levels[0].size):
        raise RequestError(
            f"{mask.path} lies elsewhere on the ground than {view.source.path}, or is turned; write it on the image's "
            "own grid, or without a CRS"
        )
    return MaskTruth(mask, view)


def _beside(image: Path, folder: Path, endings: tuple[str, ...] = ()) -> Path:
    """The file of a folder that has an image's name."""
    for path in sorted(folder.glob(f"{glob.escape(image.stem)}.*")):
        if path.stem == image.stem and (path.suffix.lower() in endings if endings else is_image_name(path)):
            return path
    what = "shapes" if endings else "mask"
    raise RequestError(f"{image} has no {what}: expected {folder / image.stem} with any ending")


def _cut(scene: Scene, side: int, apart: bool) -> list[Scene]:
    """Squares of a scene, each a group of its own or all in the scene's; those where nothing is known are left out.

    What is left at the right and bottom edges belongs to the last squares where it is less than half a side: a strip of
    its own would be drawn, or held back, as often as a whole square.
    """
    parts = []
    rows, columns = (_edges(length, side) for length in (scene.area.height, scene.area.width))
    for box in (Box.between(y, x, b, r) for y, b in pairwise(rows) for x, r in pairwise(columns)):
        name = f"{scene.name}@{box.y // side},{box.x // side}"
        part = replace(scene, name=name, group=name if apart else scene.group, area=box)
        if any((part.truth.values(piece) != IGNORE).any() for piece in part.boxes()):
            parts.append(part)
    return parts


def _edges(length: int, side: int) -> list[int]:
    """Where squares begin along a length, and its end."""
    return [*(i * side for i in range(max(1, round(length / side)))), length]


def _images(scenes: Sequence[Scene]) -> list[Source]:
    """Each image once, however many scenes it was cut into."""
    return list({id(scene.image): scene.image for scene in scenes}.values())


def _look(image: Source) -> tuple[Size, str]:
    """Size, and a hash of the pixels in the middle: what two copies of an image have in common, in any format."""
    size = image.levels[0].size
    height, width = min(LOOKED_AT, size.height), min(LOOKED_AT, size.width)
    pixels = image.read(Box((size.height - height) // 2, (size.width - width) // 2, height, width))
    return size, hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _same_pixels(one: Source, other: Source) -> bool:
    """Whether two images of one size show the same throughout, and more than one plain colour."""
    plain = True
    for box in blocks(one.levels[0].size, READ):
        first, second = one.read(box), other.read(box)
        if first.dtype != second.dtype or first.tobytes() != second.tobytes():
            return False
        plain = plain and bool((first == first[:1, :1]).all())
    return not plain


def _first_overlap(split: Split) -> tuple[Scene, Scene] | None:
    """A held-back scene and one that is learned from, of the same pixels of an image or the same ground."""
    learned: dict[str, list[Scene]] = {}
    for scene in split.train:
        if scene.image.path != "<array>":
            learned.setdefault(scene.image.path, []).append(scene)
    trees = {path: shapely.STRtree([_rectangle(s.area) for s in scenes]) for path, scenes in learned.items()}
    for held in split.validation:
        if held.image.path in trees:
            for i in sorted(trees[held.image.path].query(_rectangle(held.area))):
                other = learned[held.image.path][i]
                if held.area.intersect(other.area):
                    return held, other
    apart = [[(scene.view.georef, scene.area) for scene in scenes] for scenes in (split.validation, split.train)]
    shared = first_overlap(*apart)
    return (split.validation[shared[0]], split.train[shared[1]]) if shared else None


def _rectangle(area: Box) -> shapely.Polygon:
    return shapely.box(area.x, area.y, area.right, area.bottom)


def _few(scenes: Sequence[Scene], limit: int | None) -> tuple[Scene, ...]:
    """At most so many scenes, those with the smallest hashes of their names, in their own order."""
    chosen = {scene.name for scene in sorted(scenes, key=lambda scene: _hash(scene.name))[:limit]}
    return tuple(scene for scene in scenes if scene.name in chosen)


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _a_fifth(groups: list[str]) -> set[str]:
    """The same groups every time, whatever else is added: those with the smallest hashes."""
    order = sorted(groups, key=_hash)
    return set(order[: max(1, round(len(order) / 5))]) if len(order) > 1 else set()
