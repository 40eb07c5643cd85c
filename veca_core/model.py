"""A segmentation model: raw pixels in, class logits out, with as many cores as are asked for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from veca_core.card import Architecture, Bands, Card
from veca_core.encoder import VecaEncoder
from veca_core.errors import ModelError
from veca_core.heads import HEADS, Head
from veca_core.memory import NetworkSize
from veca_core.stem import PatchEmbed, build_stem


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
        self.card: Card | None = None
        """What the network was loaded with."""

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str | torch.device = "cpu") -> Segmenter:
        """A trained network in evaluation mode, by the name of a shipped model or by a folder."""
        from veca_core.weights import load_model

        return load_model(name, device).network

    def save_pretrained(self, folder: str | Path, card: Card | None = None, dtype: torch.dtype = torch.float32) -> None:
        """Writes a model folder, with `card` or the one that the network was loaded with; ModelError without either."""
        from veca_core.weights import save_model

        card = card or self.card
        if card is None:
            raise ModelError("a network that was not loaded from a folder needs a card to be saved with")
        save_model(Path(folder), self, card, dtype)

    def forward(self, pixels: Tensor, cores: int | None = None, chunk: int | None = None) -> Tensor:
        """Logits (B, classes, H, W), float32, for any H, W >= 1; without gradients `chunk` tokens at a time."""
        height, width = pixels.shape[-2:]
        tokens = self.encoder(pixels, cores, chunk, scale=(self.mean, self.std), skips=self.head.reads_skips)
        logits = self.head(tokens).float()
        patch = self.encoder.config.patch
        padded = (tokens.grid[0] * patch, tokens.grid[1] * patch)
        logits = F.interpolate(logits, size=padded, mode="bilinear", align_corners=False)
        return logits[..., :height, :width]


def network_size(network: Segmenter) -> NetworkSize:
    """The numbers that memory planning needs; found once for each network."""
    if network not in _SIZES:
        _SIZES[network] = _measured(network)
    return _SIZES[network]


def build(architecture: Architecture, bands: Bands, classes: int) -> Segmenter:
    """The empty network that an architecture describes; raises ModelError for parts that do not exist."""
    if architecture.head not in HEADS:
        raise ModelError(f"there is no head {architecture.head!r}; the heads are {', '.join(HEADS)}")
    encoder = build_encoder(architecture)
    head = HEADS[architecture.head](encoder.config.output_dim or encoder.config.dim, classes, encoder.stem)
    return Segmenter(encoder, head, bands)


def build_encoder(architecture: Architecture) -> VecaEncoder:
    """The empty encoder of an architecture."""
    config = architecture.config
    return VecaEncoder(config, build_stem(architecture.stem, config, architecture.deep))


_SIZES: Final[WeakKeyDictionary[Segmenter, NetworkSize]] = WeakKeyDictionary()


def _measured(network: Segmenter) -> NetworkSize:
    """Passes a picture without content through a copy."""
    ghost = copy.deepcopy(network).to("meta").eval()
    side = 16 * ghost.encoder.config.patch
    widest = 0

    def measure(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal widest
        held = sum(t.numel() for t in inputs if isinstance(t, Tensor))
        if isinstance(module, nn.Conv2d):
            held *= 3  # its input, padded, and turned into the layout that it computes in
        widest = max(widest, held + 2 * output.numel() if isinstance(output, Tensor) else 0)

    for part in (ghost.encoder.stem, ghost.head):
        for module in part.modules():
            if not any(module.children()):
                module.register_forward_hook(measure)
    config = ghost.encoder.config
    picture = torch.empty(1, config.in_channels, side, side, device="meta")
    stem, reads = ghost.encoder.stem, ghost.head.reads_skips
    with torch.no_grad():
        tokens = ghost.encoder(picture, skips=reads)
        ghost.head(tokens)
    with FlopCounterMode(display=False) as counter:
        stem(picture)
        ghost.head(tokens)
    embeds = isinstance(stem, PatchEmbed)
    kept = reads or not embeds  # a convolutional stem makes finer features on its way, whoever reads them
    return NetworkSize(
        parameters=sum(p.numel() for p in network.parameters()),
        dim=config.dim,
        hidden=config.hidden,
        heads=config.heads,
        layers=config.layers,
        patch=config.patch,
        bands=config.in_channels,
        classes=network.classes,
        widest=widest / side**2,
        operations=counter.get_total_flops() / side**2,
        skips=sum(c / s**2 for c, s in zip(stem.skip_channels, stem.strides, strict=True)) if kept else 0.0,
        embeds=embeds,
    )
