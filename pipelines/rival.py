"""What a user would take instead: a network of segmentation-models-pytorch, trained and scored by the same code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import segmentation_models_pytorch as smp
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.config import TrainRecipe
from pipelines.errors import RequestError
from veca_core.card import Bands, Score
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
