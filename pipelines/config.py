"""A training recipe: one YAML file, or a folder with images/ and masks/. Checked before anything starts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

import veca_core
from pipelines.errors import RequestError
from pipelines.shipped import shipped
from veca_core.card import STEM, Bands, ClassInfo, PixelSize, check_distinct, first_problem

PALETTE: Final = ("#BDBDBD", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
"""Colours for classes that nobody named: Okabe and Ito's, which most colour-blind people tell apart."""


Side = Annotated[int, Field(ge=32)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataRecipe(_Part):
    """Which images, what is known of them, and which of them are held back."""

    images: Path
    """Folder of images."""
    masks: Path | None = None
    """Folder of masks with the same names (any ending): one band of class values, same size as the image."""
    shapes: Path | None = None
    """In place of masks: a folder of vector files with the same names (QuPath's GeoJSON for slides), or one vector
    layer for all images, like a GeoPackage. Drawn when they are needed, at the model's spacing."""
    instances: Path | None = None
    """Folder of masks with an id for each object, 0 elsewhere: only for scoring objects."""
    attribute: str | None = None
    """The field of a shape that holds the name of its class; None: QuPath's classification, or 'class'."""
    layer: str | None = None
    """Of a vector file with several layers, the name of the one to draw."""
    elsewhere: Annotated[int, Field(ge=0, le=255)] = 255
    """The class value of pixels in no shape; 255: nothing is known of them."""
    blocks: Annotated[int, Field(ge=64)] | None = None
    """Cut each image into squares of so many pixels: for few, large images."""
    group: str | None = None
    """Regular expression on the file name; images whose first group matches the same text are never split, nor
    are their squares. None: each image, or each of its squares, is a group of its own."""
    validate_on: tuple[str, ...] = ()
    """Groups held back for validation; empty: about a fifth of the groups, chosen by their names' hash."""
    ignore: tuple[Annotated[int, Field(ge=0, le=255)], ...] = ()
    """Mask values that are neither trained on nor scored; 255 always is."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Learn from so many images only, always the same ones, and of a smaller number a part: to see what few do."""

    @field_validator("group")
    @classmethod
    def _pattern(cls, text: str | None) -> str | None:
        try:
            re.compile(text or "")
        except re.error as error:
            raise ValueError(f"{text!r} is no regular expression: {error}") from error
        return text

    @model_validator(mode="after")
    def _one_truth(self) -> DataRecipe:
        if (self.masks is None) == (self.shapes is None):
            raise ValueError("give either masks or shapes")
        return self


class NetworkRecipe(_Part):
    """The network to train."""

    preset: str = "tiny"
    stem: Annotated[str, Field(pattern=STEM)] = "tu-tf_efficientnet_lite0"
    """'patch' for the paper's embedding, or an encoder of segmentation-models-pytorch."""
    deep: bool = False
    """The stem's stages behind the patch's stride are run too, and added to the tokens."""
    head: str = "unet"
    overrides: dict[str, Any] = {}
    """Fields of the preset to change."""
    pretrained: Path | Literal["imagenet"] | None = None
    """Where weights start: 'imagenet' fetches the stem's published weights; a model folder, or a shipped model's name,
    continues from it; an encoder's folder (`veca distill`), or a published VECA checkpoint (.pt), gives the encoder's
    sizes and weights."""
    keep: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of a model that training went on from in what is kept, the rest is what it became (Wortsman et al.
    2022): learns what is new without forgetting what was known."""
    rival: str | None = None
    """smp:ARCHITECTURE:ENCODER: train that network in place of VECA, to compare with."""

    @model_validator(mode="after")
    def _something_to_keep(self) -> NetworkRecipe:
        if self.keep and not isinstance(self.pretrained, Path):
            raise ValueError(f"keep is a share of a model to go on from, and pretrained is {self.pretrained}")
        return self

    @model_validator(mode="after")
    def _rival_starts_anew(self) -> NetworkRecipe:
        if self.rival and isinstance(self.pretrained, Path):
            raise ValueError(f"a rival cannot start from {self.pretrained}; make pretrained imagenet or null")
        return self


class AugmentRecipe(_Part):
    """Random changes to each training crop."""

    scale: tuple[float, float] = (0.7, 1.4)
    """Zoom, log-uniform: 2 shows everything twice as large."""
    zoom: Annotated[float, Field(ge=0, le=1)] = 0.5
    """How often a crop is zoomed. The others keep their pixels: resampling softens them, and texture counts."""
    rotate: Annotated[float, Field(ge=0, le=1)] = 0.3
    """How often a crop is turned by any angle; quarter turns and flips are always drawn."""
    color: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Strength of brightness, contrast, saturation and hue changes (brightness and contrast for other than RGB)."""
    tint: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Strength of colour casts, a gain for each band: another sensor, season, haze or white balance (RGB only)."""
    vivid: Annotated[float, Field(ge=1)] = 1.0
    """Saturation is multiplied by 1/vivid to vivid, log-uniform (RGB only): so that a hue alone decides no class."""
    recolor: dict[int, Annotated[str, Field(pattern="^#[0-9A-Fa-f]{6}$")]] = {}
    """Mask values whose pixels are pulled towards a colour in half of the crops (RGB only): for classes that the
    training images show in one colour and other places in another, like {5: "#8FA65A"}."""
    stain: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Strength of changes to haematoxylin, eosin and DAB (RGB only)."""
    counterstain: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How often a pink second stain is laid over a crop, with fibres and gaps (RGB only): for training images that show
    one stain alone, where others show H&E."""
    blur: Annotated[float, Field(ge=0, le=1)] = 0.1
    """How often a crop is blurred or made noisy."""
    mix: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How often a rectangle of another crop is pasted in (CutMix), so that classes are not told by their company."""

    @field_validator("scale")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError(f"scale is two positive numbers, small then large, got {value}")
        return value


class LossRecipe(_Part):
    """What is made small: a weighted sum."""

    cross_entropy: Annotated[float, Field(ge=0)] = 1.0
    dice: Annotated[float, Field(ge=0)] = 1.0
    focal: Annotated[float, Field(ge=0)] = 0.0
    """Cross-entropy that cares less for pixels which are right already (Lin et al. 2017), gamma 2."""
    boundary: Annotated[float, Field(ge=0)] = 0.0
    """How far from a class, in pixels, it is called (Kervadec et al. 2019); 0.01 beside the others is a start."""

    @model_validator(mode="after")
    def _something(self) -> LossRecipe:
        if not any((self.cross_entropy, self.dice, self.focal, self.boundary)):
            raise ValueError("all losses have weight 0: nothing would be learned")
        return self


class ScheduleRecipe(_Part):
    """How long and how fast."""

    steps: Annotated[int, Field(ge=1)] = 1000
    batch: Annotated[int, Field(ge=1)] = 4
    crop: Side | Annotated[tuple[Side, ...], Field(min_length=1)] = 384
    """Side of a training crop in pixels; several, like [256, 384, 512], and each step draws one of them."""
    rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate of AdamW."""
    stem_rate: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of that rate at which a pretrained stem learns."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """A block of the encoder learns at this share of the rate of the block behind it; below 1 to fine-tune."""
    freeze: bool = False
    """The encoder stays as it is and only the head learns: a linear probe, where the head is linear."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup: Annotated[int, Field(ge=0)] = 50
    """Steps of linear warm-up before the cosine."""
    balance: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of crops centred on a pixel of a class drawn with equal chances."""
    border: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of those whose pixel lies where its class meets another."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the running mean of the weights that is validated and kept."""
    validate_every: Annotated[int, Field(ge=1)] = 100
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many validations in a row that were not better than the best; None: never."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @property
    def crops(self) -> tuple[int, ...]:
        """The sides of crops."""
        return (self.crop,) if isinstance(self.crop, int) else self.crop


class TrainRecipe(_Part):
    """Everything that makes a model: `veca train` reads it from YAML."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    summary: str = ""
    classes: tuple[ClassInfo, ...]
    data: DataRecipe
    bands: Bands | None = None
    """None: those of the model or encoder that training goes on from, where it reads numbers of the images' type; or
    what the first image has, with means and deviations measured on the images."""
    kind: Literal["slide", "raster", "any"] = "any"
    spacing: PixelSize | None = None
    """The pixel size of the training images; None: unknown, the model then reads every image as it is."""
    window: Annotated[int, Field(ge=32)] = 512
    network: NetworkRecipe = NetworkRecipe()
    augment: AugmentRecipe = AugmentRecipe()
    loss: LossRecipe = LossRecipe()
    schedule: ScheduleRecipe = ScheduleRecipe()
    store: Literal["float16", "float32"] = "float16"
    """Number type of the saved weights."""
    licence: str = ""
    source: str = ""
    """Where the data came from, for the card."""
    recipe: str = ""
    """The command that makes the model, for the card."""
    limits: tuple[str, ...] = ()
    """What it cannot do, in plain words, for the card."""

    @model_validator(mode="after")
    def _useful(self) -> TrainRecipe:
        if len(self.classes) < 2:
            raise ValueError("training needs at least two classes (background counts as one)")
        check_distinct(self.classes)
        both = {c.value for c in self.classes} & set(self.data.ignore)
        if both:
            raise ValueError(f"the mask values {sorted(both)} are classes and ignored; they can only be one of these")
        strange = set(self.augment.recolor) - {c.value for c in self.classes}
        if strange:
            raise ValueError(f"augment.recolor names the mask values {sorted(strange)}, which are no classes")
        return self

    @model_validator(mode="after")
    def _rival_learns_whole(self) -> TrainRecipe:
        if self.network.rival and (self.schedule.freeze or self.schedule.layer_decay < 1):
            raise ValueError(
                f"a rival learns whole, at one rate, and the recipe has freeze {self.schedule.freeze} and layer_decay "
                f"{self.schedule.layer_decay:g}; make schedule.freeze false and schedule.layer_decay 1"
            )
        return self


def read_recipe(path: Path, changes: Sequence[str] = ()) -> TrainRecipe:
    """A recipe from YAML; paths in it are relative to the file. Raises RequestError naming what is wrong.

    Each of `changes` is written PART.FIELD=VALUE, like schedule.seed=1, its value as YAML.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path} is no recipe: expected name, classes and data, see docs/training.md")
    return _checked(content, changes, path, path.parent)


def read_data(folder: Path, changes: Sequence[str] = ()) -> TrainRecipe:
    """A recipe for a folder with images/ and masks/: its classes are the values that the masks hold.

    `changes` are those of `read_recipe`; paths in them are relative to the folder.
    """
    from pipelines.images import is_image_name
    from tiling import open_image

    masks = folder / "masks"
    if not masks.is_dir() or not (folder / "images").is_dir():
        raise RequestError(f"{folder} has no images/ and masks/; give a YAML recipe, or such a folder")
    values: set[int] = set()
    for path in sorted(p for p in masks.iterdir() if is_image_name(p)):
        mask = open_image(path, indexed=True)
        if mask.dtype != np.uint8:
            raise RequestError(f"{path} holds {mask.dtype} values; a mask has one 8-bit band of class values")
        values |= set(np.unique(mask.read(mask.levels[0].size.box)).tolist()) - {255}
    if len(values) < 2:
        raise RequestError(f"the masks in {masks} hold {len(values)} class value(s); at least two are needed")
    classes = [
        {"value": int(value), "name": f"class {int(value)}", "color": PALETTE[i % len(PALETTE)]}
        for i, value in enumerate(sorted(values))
    ]
    name = re.sub(r"[^A-Za-z0-9._-]", "-", folder.resolve().name) or "model"
    content = {"name": name, "classes": classes, "data": {"images": "images", "masks": "masks"}}
    return _checked(content, changes, folder, folder)


def _checked(content: dict[str, Any], changes: Sequence[str], origin: Path, beside: Path) -> TrainRecipe:
    """The recipe that plain YAML says, changed; its paths are relative to the folder `beside`."""
    for change in changes:
        _change(content, change)
    try:
        recipe = TrainRecipe.model_validate(content)
    except ValidationError as error:
        raise RequestError(f"{origin}: {first_problem(error)}") from error
    data = recipe.data.model_copy(
        update={
            name: (beside / place).resolve()
            for name in ("images", "masks", "shapes", "instances")
            if (place := getattr(recipe.data, name)) is not None
        }
    )
    network = recipe.network
    if isinstance(network.pretrained, Path):
        network = network.model_copy(update={"pretrained": _start(network.pretrained, beside)})
    return recipe.model_copy(update={"data": data, "network": network})


def _start(place: Path, beside: Path) -> Path:
    """Where training starts from: a path beside the recipe or, where there is none, a shipped model's folder."""
    path = (beside / place).resolve()
    if path.exists() or all(choice.name != str(place) for choice in shipped()):
        return path
    return Path(veca_core.__file__).with_name("zoo") / place


def _change(content: dict[str, Any], change: str) -> None:
    """Sets one field of a recipe that is still plain YAML; raises RequestError for what is no change."""
    place, equals, value = change.partition("=")
    *parts, field = place.strip().split(".")
    if not (equals and field and all(parts)):
        raise RequestError(f"cannot read the change {change!r}; write it like schedule.seed=1")
    for part in parts:
        content = content.setdefault(part, {})
        if not isinstance(content, dict):
            raise RequestError(f"cannot change {place!r}: {part!r} holds a value, not fields")
    try:
        content[field] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RequestError(f"the change {change!r} has no value that YAML can read") from error
