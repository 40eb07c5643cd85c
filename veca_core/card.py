"""model.json: what a trained model is, sees, says and was measured to do. Checked whenever one is read."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from veca_core.config import VecaConfig
from veca_core.errors import ModelError

STEM: Final = r"^[A-Za-z0-9_.-]+$"
"""What a stem may be called. No colon: a name like hf-hub:... would make a library fetch code and weights."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassInfo(_Part):
    """One class that a model tells apart."""

    value: Annotated[int, Field(ge=0, le=254)]
    """What is written in masks; 255 is no data."""
    name: Annotated[str, Field(min_length=1)]
    color: str
    """#RRGGBB."""

    @field_validator("color")
    @classmethod
    def _hex(cls, text: str) -> str:
        if not re.fullmatch(r"#[0-9A-Fa-f]{6}", text):
            raise ValueError(f"a colour is written #RRGGBB, got {text!r}")
        return text

    @property
    def rgb(self) -> tuple[int, int, int]:
        red, green, blue = bytes.fromhex(self.color[1:])
        return red, green, blue


class Bands(_Part):
    """The bands a model reads, in order, and how their raw pixel values become network input: (x - mean) / std."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str = "uint8"
    """The data type of the images it was trained on."""

    @model_validator(mode="after")
    def _fits(self) -> Bands:
        if not len(self.names) == len(self.mean) == len(self.std) >= 1:
            raise ValueError("bands need one name, one mean and one std each")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError(f"means must be finite and deviations positive, got {self.mean} and {self.std}")
        return self


class PixelSize(_Part):
    """The pixel size that a model was trained at."""

    value: Annotated[float, Field(gt=0)]
    unit: Literal["um", "m"]
    estimated: bool = False
    """True where the training images did not say it and somebody judged it by eye."""


class Architecture(_Part):
    """What `veca_core.model.build` needs to make the empty network."""

    encoder: dict[str, Any]
    """Fields of VecaConfig."""
    stem: Annotated[str, Field(pattern=STEM)] = "patch"
    deep: bool = False
    """The stem's stages behind the patch's stride are run too, and added to the tokens."""
    head: str = "unet"

    @property
    def config(self) -> VecaConfig:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in self.encoder.items()}
        try:
            return VecaConfig(**fields)
        except (TypeError, ValueError) as error:
            raise ModelError(f"the encoder settings do not fit: {error}") from error


class Score(_Part):
    """How good a model was with one number of cores on its validation images, 0..1."""

    cores: int
    mean_iou: float
    mean_dice: float
    iou: dict[str, float]
    """Per class."""
    interval: tuple[float, float] | None = None
    """95 % interval of the mean IoU, by bootstrap over images."""
    boundary_f1: float | None = None
    """Mean over the classes."""
    ece: float | None = None
    """Expected calibration error: how far confidence and accuracy are apart."""
    pq: float | None = None
    """Panoptic quality, where the validation images tell objects apart."""

    @property
    def dice(self) -> dict[str, float]:
        """Per class, 2 IoU / (1 + IoU): rounded to four digits, as IoU is."""
        return {name: round(2 * iou / (1 + iou), 4) for name, iou in self.iou.items()}


class Card(_Part):
    """A model's card: the whole of model.json."""

    format: Literal["veca-model/1"] = "veca-model/1"
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    summary: str = ""
    """One sentence: what it is for."""
    architecture: Architecture
    classes: tuple[ClassInfo, ...]
    bands: Bands
    kind: Literal["slide", "raster", "any"] = "any"
    """What it is meant for; slides are searched for tissue first."""
    spacing: PixelSize | None = None
    """None: it was trained on images that do not say, and reads pixels as they are."""
    window: Annotated[int, Field(ge=16)] = 512
    """Side of the crop it is best run on, in pixels."""
    scores: tuple[Score, ...] = ()
    validation: str = ""
    """What the scores were measured on."""
    data: str = ""
    licence: str = ""
    recipe: str = ""
    """The command that trains it again."""
    limits: tuple[str, ...] = ()
    """What it cannot do, in plain words."""

    @model_validator(mode="after")
    def _distinct(self) -> Card:
        if not self.classes:
            raise ValueError("a model needs at least one class")
        check_distinct(self.classes)
        if self.architecture.encoder.get("in_channels", 3) != len(self.bands.names):
            raise ValueError(f"the encoder's in_channels and the {len(self.bands.names)} named bands differ")
        return self

    def score(self, cores: int) -> Score | None:
        """What was measured with this many cores, if it was."""
        return next((s for s in self.scores if s.cores == cores), None)


class EncoderCard(_Part):
    """What an encoder without a head is: the whole of encoder.json."""

    format: Literal["veca-encoder/1"] = "veca-encoder/1"
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    architecture: Architecture
    """Its head says nothing here."""
    bands: Bands
    spacing: PixelSize | None = None
    teacher: str = ""
    """What it was distilled from."""
    data: str = ""
    licence: str = ""


def check_distinct(classes: Sequence[ClassInfo]) -> None:
    """Raises ValueError where two classes share a value or a name."""
    for what in ("value", "name"):
        seen = [getattr(c, what) for c in classes]
        if len(set(seen)) < len(seen):
            raise ValueError(f"two classes share a {what}: {seen}")


def parse_card(text: str | bytes, origin: str) -> Card:
    """A card from JSON; raises ModelError naming `origin` and the first thing that is wrong."""
    try:
        return Card.model_validate_json(text)
    except ValidationError as error:
        raise ModelError(f"{origin}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, in one line."""
    problem = error.errors()[0]
    place = ".".join(str(p) for p in problem["loc"]) or "the file"
    return f"{place}: {problem['msg'].removeprefix('Value error, ')}"
