"""A segmentation model: raw pixels in, class logits out, with as many cores as are asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from veca_core.card import Architecture, Bands
from veca_core.encoder import VecaEncoder
from veca_core.errors import ModelError
from veca_core.heads import HEADS, Head
from veca_core.stem import build_stem


class Segmenter(nn.Module):
    """An encoder and a head. Takes raw pixels (B, bands, H, W) of any dtype and normalises them where they are."""

    def __init__(self, encoder: VecaEncoder, head: Head, bands: Bands) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.classes = head.classify.out_channels
        self.register_buffer("mean", torch.tensor(bands.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(bands.std).view(1, -1, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, pixels: Tensor, cores: int | None = None) -> Tensor:
        """Logits (B, classes, H, W), float32, for any H, W >= 1."""
        height, width = pixels.shape[-2:]
        images = (pixels.float() - self.mean) / self.std
        tokens = self.encoder(images, cores)
        logits = self.head(tokens).float()
        patch = self.encoder.config.patch
        padded = (tokens.grid[0] * patch, tokens.grid[1] * patch)
        logits = F.interpolate(logits, size=padded, mode="bilinear", align_corners=False)
        return logits[..., :height, :width]


def build(architecture: Architecture, bands: Bands, classes: int) -> Segmenter:
    """The empty network that an architecture describes; raises ModelError for parts that do not exist."""
    config = architecture.config
    if architecture.head not in HEADS:
        raise ModelError(f"there is no head {architecture.head!r}; the heads are {', '.join(HEADS)}")
    stem = build_stem(architecture.stem, config)
    head = HEADS[architecture.head](config.output_dim or config.dim, classes, stem)
    return Segmenter(VecaEncoder(config, stem), head, bands)
