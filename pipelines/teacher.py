"""Teachers to distil from: their features for each patch, and for the whole crop."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import segmentation_models_pytorch as smp
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.errors import RequestError
from pipelines.fetch import cache_folder
from pipelines.pretrained import IMAGENET_BANDS, expected_scale, load_imagenet, timm_weights
from veca_core import VecaEncoder, load_model, load_official_encoder
from veca_core.card import STEM
from veca_core.weights import ENCODER_CARD, load_encoder

OTHER_PATCH: Final = "the teacher {} has patches of {} px and the student of {}: make them alike"
NO_TRANSFORMER: Final = "{!r} is no plain vision transformer; name another teacher smp:tu-{}"

Weights = Literal["published", "random"]


class Teacher(nn.Module):
    """Raw pixels (B, bands, H, W), sides multiples of the patch -> global (B, D) and patches (B, N, D), row by row."""

    names: tuple[str, ...] = IMAGENET_BANDS.names
    """Of the bands it sees, in its order."""

    def __init__(self, body: nn.Module, dim: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.body = body.eval().requires_grad_(False)
        self.dim = dim
        """D."""
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised over their width, so that losses have one scale whatever the teacher."""
        whole, patches = self.features((pixels.float() - self.mean) / self.std)
        return F.layer_norm(whole.float(), (self.dim,)), F.layer_norm(patches.float(), (self.dim,))

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Global (B, D) and patches (B, N, D) of normalised images."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Teacher:  # noqa: ARG002 - it never trains
        return super().train(False)


class ConvTeacher(Teacher):
    """A convolutional encoder: its map at the patch's stride beside the enlarged deeper ones; global is their mean."""

    def __init__(self, body: Any, level: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__(body, sum(int(c) for c in body.out_channels[level:]), mean, std)
        self.level = level

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.body(F.pad(images, (0, -images.shape[3] % 32, 0, -images.shape[2] % 32), mode="replicate"))
        height, width = images.shape[2] >> self.level, images.shape[3] >> self.level
        finest = maps[self.level]
        stacked = torch.cat(
            [finest, *(F.interpolate(m, size=finest.shape[2:], mode="bilinear") for m in maps[self.level + 1 :])], 1
        )[..., :height, :width]
        patches = stacked.flatten(2).transpose(1, 2)
        return patches.mean(dim=1), patches


class VitTeacher(Teacher):
    """A vision transformer of timm: its class token (or the mean of its patches) and its patches."""

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        body: Any = self.body
        tokens = body.forward_features(images)
        patches = tokens[:, body.num_prefix_tokens :]
        # Without a class token the first one may be a register, which says nothing of the whole.
        return tokens[:, 0] if getattr(body, "cls_token", None) is not None else patches.mean(dim=1), patches


class VecaTeacher(Teacher):
    """A VECA encoder with all its cores: its first core and its patches."""

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.body(images)
        return tokens.cores[:, 0], tokens.patches


def load_teacher(spec: str, weights: Weights | Path, patch: int, bands: int) -> Teacher:
    """The teacher that is named smp:ENCODER, timm:MODEL, or veca:MODEL, FOLDER or CHECKPOINT.pt.

    `weights`: those published for it, a safetensors file, or random ones. Raises RequestError for a teacher that does
    not exist, sees other bands, or whose patches are not the student's.
    """
    kind, _, name = spec.partition(":")
    if kind not in TEACHERS or not name:
        raise RequestError(f"cannot read the teacher {spec!r}; write one of {', '.join(f'{k}:NAME' for k in TEACHERS)}")
    teacher = TEACHERS[kind](name, weights, patch)
    if teacher.mean.shape[1] != bands:
        raise RequestError(f"the teacher {spec} sees {teacher.mean.shape[1]} bands, and the images have {bands}")
    return teacher


def _conv(name: str, weights: Weights | Path, patch: int) -> Teacher:
    level = int(math.log2(patch))
    if 2**level != patch or not 1 <= level <= 5:
        raise RequestError(
            f"a convolutional teacher needs a patch of 2, 4, 8, 16 or 32 px, and the student has {patch}"
        )
    if not re.match(STEM, name):
        raise RequestError(f"{name!r} is no encoder of segmentation-models-pytorch")
    try:
        body = smp.encoders.get_encoder(name, in_channels=3, depth=5, weights=None)
    except (KeyError, RuntimeError, ValueError) as error:
        raise RequestError(f"{name!r} is no encoder of segmentation-models-pytorch") from error
    if weights == "published":
        load_imagenet(body, name, cache_folder())
    elif isinstance(weights, Path):
        _fill(body, weights)
    return ConvTeacher(body, level, *expected_scale(body, name))


def _vit(name: str, weights: Weights | Path, patch: int) -> Teacher:
    if not re.match(STEM, name) or not timm.is_model(name):
        raise RequestError(f"timm has no model {name!r}")
    made = partial(timm.create_model, name, num_classes=0, dynamic_img_size=True)
    try:
        body: Any = made()
    except TypeError as error:
        raise RequestError(NO_TRANSFORMER.format(name, name)) from error
    theirs = getattr(getattr(body, "patch_embed", None), "patch_size", None)
    if theirs is None or not hasattr(body, "num_prefix_tokens"):
        raise RequestError(NO_TRANSFORMER.format(name, name))
    if theirs[0] != patch:
        raise RequestError(OTHER_PATCH.format(name, theirs[0], patch))
    if weights == "published":
        body = made(**timm_weights(name))
    if isinstance(weights, Path):
        _fill(body, weights)
    told = body.pretrained_cfg
    return VitTeacher(
        body, body.num_features, tuple(255 * v for v in told["mean"]), tuple(255 * v for v in told["std"])
    )


def _veca(name: str, weights: Weights | Path, patch: int) -> Teacher:
    if weights != "published":
        raise RequestError("a VECA teacher comes with its weights; leave teacher_weights out")
    encoder: VecaEncoder
    bands = IMAGENET_BANDS
    if name.endswith((".pt", ".pth")):
        encoder = load_official_encoder(name)
    elif (Path(name) / ENCODER_CARD).is_file():
        encoder, card = load_encoder(Path(name))
        bands = card.bands
    else:
        model = load_model(name)
        encoder, bands = model.network.encoder, model.card.bands
    config = encoder.config
    if config.patch != patch:
        raise RequestError(OTHER_PATCH.format(name, config.patch, patch))
    teacher = VecaTeacher(encoder, config.output_dim or config.dim, bands.mean, bands.std)
    teacher.names = bands.names
    return teacher


TEACHERS: Final[dict[str, Callable[[str, Weights | Path, int], Teacher]]] = {"smp": _conv, "timm": _vit, "veca": _veca}


def _fill(body: nn.Module, path: Path) -> None:
    try:
        body.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RequestError(f"{path} does not hold the teacher's weights as safetensors") from error
