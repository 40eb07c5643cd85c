"""What a user would take instead: a network of segmentation-models-pytorch, trained and scored by the same code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import segmentation_models_pytorch as smp
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.config import TrainRecipe
from pipelines.errors import RequestError
from pipelines.pretrained import IMAGENET
from veca_core.card import Bands, Card, Score, first_problem
from veca_core.weights import write_tensors

WEIGHTS: Final = "rival.safetensors"
FACTS: Final = "rival.json"


class Rival(nn.Module):
    """Raw pixels (B, bands, H, W) -> logits (B, classes, H, W), as a Segmenter does; `cores` is not listened to.

    `spec` is smp:ARCHITECTURE:ENCODER, like smp:Unet:tu-tf_efficientnet_lite0; raises RequestError for another one.
    """

    multiple: Final = 32

    def __init__(self, spec: str, bands: Bands, classes: int) -> None:
        super().__init__()
        library, _, rest = spec.partition(":")
        architecture, _, self.encoder_name = rest.partition(":")
        if library != "smp" or not self.encoder_name:
            raise RequestError(f"cannot read the rival {spec!r}; write smp:Unet:tu-tf_efficientnet_lite0")
        try:
            self.body: Any = smp.create_model(
                architecture, self.encoder_name, encoder_weights=None, in_channels=len(bands.names), classes=classes
            )
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise RequestError(f"segmentation-models-pytorch has no network {rest!r}") from error
        try:
            with torch.no_grad():
                self.body.eval()(torch.zeros(1, len(bands.names), self.multiple, 2 * self.multiple))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise RequestError(f"the network {rest!r} takes images of one size only; choose another rival") from error
        self.body.train()
        self.classes = classes
        self.register_buffer("mean", torch.tensor(bands.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(bands.std).view(1, -1, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, pixels: Tensor, cores: int | None = None) -> Tensor:  # noqa: ARG002 - a Segmenter's signature
        height, width = pixels.shape[-2:]
        images = (pixels.float() - self.mean) / self.std
        margins = (0, -width % self.multiple, 0, -height % self.multiple)
        logits: Tensor = self.body(F.pad(images, margins, mode="replicate")).float()
        return logits[..., :height, :width]


@dataclass(frozen=True, slots=True)
class Terms:
    """How a rival is trained, to stand beside a model."""

    recipe: TrainRecipe
    start: str
    """What must be told of its start; empty where it starts as the model did."""


def fair_terms(recipe: TrainRecipe, card: Card, spec: str) -> Terms:
    """The recipe of a model turned to a rival: the same data, crops, steps and seed.

    Classes and their order, bands, pixel size and window are the card's, by which both are scored.

    No rival has room for a VECA model's weights: where the recipe goes on from some, it starts from ImageNet weights,
    and keeps no share of them. Raises RequestError for a rival that does not exist, or cannot learn by this recipe.
    """
    encoder, bands = Rival(spec, card.bands, len(card.classes)).encoder_name, len(card.bands.names)
    network, start = recipe.network.model_copy(update={"rival": spec}), ""
    if network.pretrained is not None and (encoder not in IMAGENET or bands != 3):
        raise RequestError(
            f"the recipe starts from {_name(network.pretrained)}, and there are no ImageNet weights for {encoder!r} "
            f"with {bands} band(s) to start a rival from; take {', '.join(IMAGENET)} with three bands, or leave out "
            "network.pretrained and network.keep"
        )
    if isinstance(network.pretrained, Path):
        start = (
            f"{spec} starts from ImageNet weights, where the recipe goes on from {_name(network.pretrained)}: it has "
            f"{recipe.schedule.steps} steps to learn in, without those that made that start"
        )
        network = network.model_copy(update={"pretrained": "imagenet", "keep": 0.0})
    same = {name: getattr(card, name) for name in ("classes", "bands", "spacing", "window")}
    try:
        changed = recipe.model_copy(update={**same, "network": network})
        return Terms(TrainRecipe.model_validate(changed.model_dump()), start)
    except ValidationError as error:
        raise RequestError(f"{spec}: {first_problem(error)}") from error


def _name(start: Path | str) -> str:
    """A model's folder is called 'best' in every run."""
    return "/".join(start.parts[-2:]) if isinstance(start, Path) else f"{start} weights"


def save_rival(folder: Path, network: Rival, recipe: TrainRecipe, bands: Bands, score: Score) -> None:
    """Writes weights and facts, each by a rename."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, {k: v.contiguous().cpu() for k, v in network.state_dict().items()})
    facts = {
        "rival": recipe.network.rival,
        "bands": bands.model_dump(mode="json"),
        "classes": [c.model_dump(mode="json") for c in recipe.classes],
        "window": recipe.window,
        "score": score.model_dump(mode="json"),
    }
    (folder / f".{FACTS}").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (folder / f".{FACTS}").replace(folder / FACTS)


def load_rival(folder: Path) -> Rival:
    """A trained rival, in evaluation mode; raises RequestError where the folder holds none."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        network = Rival(facts["rival"], Bands.model_validate(facts["bands"]), len(facts["classes"]))
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise RequestError(f"{folder} holds no rival that can be read; remove it, and it is trained again") from error
    return network.eval()
