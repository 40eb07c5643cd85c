"""A distillation recipe: one YAML file, checked before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.config import AugmentRecipe, NetworkRecipe
from pipelines.errors import RequestError
from veca_core.card import Bands, PixelSize, first_problem


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Stage(_Part):
    """A stretch of steps with crops of the same sides."""

    steps: Annotated[int, Field(ge=1)]
    sides: tuple[Annotated[int, Field(ge=32)], ...] = (224,)
    """Sides of crops; where there are several, each step draws one."""
    batch: Annotated[int, Field(ge=1)] = 8


class DistillRecipe(_Part):
    """What makes an encoder from unlabelled images: `veca distill` reads it from YAML."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    images: tuple[str, ...]
    """Images, folders of images, or patterns."""
    teacher: str
    """smp:ENCODER, timm:MODEL, or veca:MODEL, FOLDER or CHECKPOINT.pt."""
    teacher_weights: Literal["published", "random"] | Path = "published"
    bands: Bands | None = None
    """None: measured on the images."""
    spacing: PixelSize | None = None
    network: NetworkRecipe = NetworkRecipe(stem="patch")
    """Its head says nothing here; it has no start and no rival."""
    augment: AugmentRecipe = AugmentRecipe(rotate=0.0)
    stages: tuple[Stage, ...] = (Stage(steps=1000), Stage(steps=300, sides=(160, 224, 320)))
    rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup: Annotated[int, Field(ge=0)] = 50
    save_every: Annotated[int, Field(ge=1)] = 100
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    source: str = ""
    licence: str = ""

    @model_validator(mode="after")
    def _useful(self) -> DistillRecipe:
        if not self.images or not self.stages:
            raise ValueError("a distillation needs images and at least one stage")
        return self

    @model_validator(mode="after")
    def _nothing_ignored(self) -> DistillRecipe:
        network = self.network
        if network.pretrained is not None:
            fields = "network.pretrained and network.keep" if network.keep else "network.pretrained"
            raise ValueError(
                f"a distillation starts from random weights, not from {network.pretrained}; leave out {fields}"
            )
        if network.rival:
            raise ValueError(f"a distillation trains an encoder, not {network.rival}; leave out network.rival")
        if self.augment.recolor:
            raise ValueError("augment.recolor changes classes, and a distillation knows none; leave it out")
        return self

    @property
    def steps(self) -> int:
        """Of all stages together."""
        return sum(stage.steps for stage in self.stages)


def read_distill_recipe(path: Path) -> DistillRecipe:
    """A recipe from YAML; paths in it are relative to the file. Raises RequestError naming what is wrong."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        recipe = DistillRecipe.model_validate(content)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise RequestError(f"{path}: {first_problem(error)}") from error
    changed: dict[str, object] = {"images": tuple(str(path.parent / name) for name in recipe.images)}
    if isinstance(recipe.teacher_weights, Path):
        changed["teacher_weights"] = path.parent / recipe.teacher_weights
    kind, _, name = recipe.teacher.partition(":")
    if kind == "veca" and (path.parent / name).exists():
        changed["teacher"] = f"veca:{path.parent / name}"
    return recipe.model_copy(update=changed)
