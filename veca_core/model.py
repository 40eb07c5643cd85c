"""A segmentation model: raw pixels in, class logits out, with as many cores as are asked for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from veca_core.allocations import Allocations
from veca_core.card import Architecture, Bands, Card
from veca_core.encoder import Tokens, VecaEncoder
from veca_core.errors import ModelError
from veca_core.heads import HEADS, Head
from veca_core.memory import Around, NetworkSize
from veca_core.stem import PatchEmbed, Stemmed, build_stem


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
        return self.decode(tokens)[..., :height, :width]

    def decode(self, tokens: Tokens) -> Tensor:
        """Logits (B, classes, h * patch, w * patch), float32."""
        logits = self.head(tokens).float()
        patch = self.encoder.config.patch
        padded = (tokens.grid[0] * patch, tokens.grid[1] * patch)
        return F.interpolate(logits, size=padded, mode="bilinear", align_corners=False)


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


SIDE: Final = 4
"""Patches along a side of the picture that a network is measured with."""


def _measured(network: Segmenter) -> NetworkSize:
    """Passes a small picture through a copy: what stem and head take grows with the pixels and with nothing else."""
    trial = copy.deepcopy(network).cpu().eval()
    config = trial.encoder.config
    pixels = (SIDE * config.patch) ** 2
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        around = {
            (number.itemsize, on_cpu): _around(trial, number, on_cpu, pixels)
            for number in (torch.float32, torch.bfloat16)
            for on_cpu in (True, False)
        }
    embeds = isinstance(trial.encoder.stem, PatchEmbed)
    embedding = 2 * config.in_channels * config.dim if embeds else 0
    return NetworkSize(
        parameters=sum(p.numel() for p in network.parameters()),
        dim=config.dim,
        hidden=config.hidden,
        heads=config.heads,
        layers=config.layers,
        patch=config.patch,
        bands=config.in_channels,
        classes=network.classes,
        around=around,
        operations=counter.get_total_flops() / len(around) / pixels + embedding,
        embeds=embeds,
    )


def _around(trial: Segmenter, number: torch.dtype, on_cpu: bool, pixels: int) -> Around:
    """What stem and head take in a number type, on a CPU or elsewhere."""
    weights = [*trial.parameters(), *trial.buffers()]
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=number == torch.bfloat16),
        Allocations(weights, on_cpu) as allocations,
    ):
        tokens = _tokens(trial, _stemmed(trial))
        stem = allocations.take(pixels)
        logits = trial.decode(tokens)
        del tokens
        head = allocations.take(pixels)
        del logits
    return Around(stem, head)


def _stemmed(trial: Segmenter) -> Stemmed:
    """What a picture without content becomes; patches are embedded a band at a time, which takes nothing of its own."""
    config, stem, reads = trial.encoder.config, trial.encoder.stem, trial.head.reads_skips
    side = SIDE * config.patch
    if isinstance(stem, PatchEmbed):
        strides = stem.strides if reads else ()
        finer = tuple(torch.zeros(1, config.in_channels, side // stride, side // stride) for stride in strides)
        return Stemmed(torch.zeros(1, SIDE**2, config.dim), (SIDE, SIDE), finer)
    picture = torch.zeros(1, config.in_channels, side, side, dtype=torch.uint8)
    found: Stemmed = stem(picture, (trial.mean, trial.std), reads)
    return found


def _tokens(trial: Segmenter, stemmed: Stemmed) -> Tokens:
    """The same behind blocks that do nothing."""
    patches = stemmed.tokens.to(trial.encoder.bank.tokens.dtype)
    features = patches.new_zeros(*patches.shape[:2], trial.encoder.config.output_dim or patches.shape[2])
    return Tokens(features[:, :0], features, stemmed.grid, stemmed.skips)
