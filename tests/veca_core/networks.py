"""Networks small enough for tests, with random weights, and the cards that describe them."""

from __future__ import annotations

from typing import Any

import torch

from veca_core import Card, Segmenter, build
from veca_core.card import Architecture, Bands, ClassInfo, Score

TINY: dict[str, Any] = {"dim": 48, "layers": 2, "heads": 3, "cores": 24}
LITE = "tu-tf_efficientnet_lite0"


def card(stem: str = "patch", head: str = "linear", bands: int = 3, classes: int = 4, **encoder: Any) -> Card:
    return Card(
        name="test-model",
        architecture=Architecture(encoder={**TINY, "in_channels": bands, **encoder}, stem=stem, head=head),
        classes=tuple(ClassInfo(value=3 * i, name=f"class {i}", color=f"#0000{i:02X}") for i in range(classes)),
        bands=Bands(names=tuple(f"band {i}" for i in range(bands)), mean=(120.0,) * bands, std=(60.0,) * bands),
        scores=(Score(cores=8, mean_iou=0.5, mean_dice=0.6, iou={"class 0": 0.4, "class 1": 0.6}),),
    )


def network(described: Card, seed: int = 0) -> Segmenter:
    """In evaluation mode."""
    torch.manual_seed(seed)
    return build(described.architecture, described.bands, len(described.classes)).eval()


def pixels(height: int, width: int, bands: int = 3, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (batch, bands, height, width), generator=generator, dtype=torch.uint8)
