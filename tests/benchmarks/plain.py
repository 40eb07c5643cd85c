"""The network as one would write it from the paper, in float tensors, a line an equation: ours must be faster.

The published code is of this kind: tables of angles are made in each pass, cores and patches are joined for every
normalisation and product, and attention is `scaled_dot_product_attention`. Weights are taken from an encoder of ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from veca_core import VecaEncoder
from veca_core.attention import Block


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    return layer


class PlainBlock(nn.Module):
    def __init__(self, block: Block) -> None:
        super().__init__()
        attention, mlp = block.attention, block.mlp
        self.heads = attention.heads
        parts = zip(attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True)
        self.q, self.k, self.v = (linear(*part) for part in parts)
        self.norm_attention, self.norm_mlp, self.out = block.norm_attention, block.norm_mlp, attention.out
        self.fc1, self.fc2 = mlp.fc1, mlp.fc2

    def split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, heads, T, d)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, tokens: Tensor, cores: int, angles: Tensor) -> Tensor:
        """Cores and patches (B, C + N, D), and each token's angles (C + N, d / 2)."""
        x = self.norm_attention(tokens)
        q, k, v = (self.split(part(x)) for part in (self.q, self.k, self.v))
        q, k = turned(q, angles), turned(k, angles)
        to_cores = F.scaled_dot_product_attention(q[:, :, :cores], k, v)
        to_patches = F.scaled_dot_product_attention(q[:, :, cores:], k[:, :, :cores], v[:, :, :cores])
        tokens = tokens + self.out(torch.cat([to_cores, to_patches], dim=2).transpose(1, 2).flatten(2))
        u, gate = self.fc1(self.norm_mlp(tokens)).chunk(2, dim=-1)
        result: Tensor = tokens + self.fc2(F.silu(u) * gate)
        return result


class PlainVeca(nn.Module):
    """Images (1, bands, H, W), normalised, of whole patches -> cores (1, C, D) and patches (1, N, D)."""

    def __init__(self, encoder: VecaEncoder) -> None:
        super().__init__()
        self.embed, self.bank, self.norm = encoder.stem.proj, encoder.bank, encoder.norm
        self.blocks = nn.ModuleList(PlainBlock(block) for block in encoder.blocks)
        self.moves, self.rates = encoder.moves, encoder.move_rates
        width, silent = encoder.config.head_dim, encoder.config.rope_off
        periods = 100 ** (torch.arange(width // 4) * 4 / width)
        periods[width // 4 - round(silent * width / 4) :] = math.inf
        self.periods = nn.Buffer(periods)

    def forward(self, images: Tensor, cores: int) -> tuple[Tensor, Tensor]:
        features = self.embed(images)
        places = centres(features.shape[2], features.shape[3])
        tokens = torch.cat([self.bank.tokens[None, :cores], features.flatten(2).transpose(1, 2)], dim=1)
        rho = self.bank.coordinates[:cores]
        for i, block in enumerate(self.blocks):
            if i > 0:
                rho = rho + self.rates[i - 1] * self.moves[i - 1](tokens[0, :cores]).float()
            angles = 2 * math.pi * torch.cat([rho.tanh(), places]).unsqueeze(-1) / self.periods
            tokens = block(tokens, cores, angles.flatten(1))
        tokens = self.norm(tokens)
        return tokens[:, :cores], tokens[:, cores:]


def centres(rows: int, columns: int) -> Tensor:
    """(rows * columns, 2) as (x, y) in [-1, 1]."""
    y, x = (2 * (torch.arange(n) + 0.5) / n - 1 for n in (rows, columns))
    return torch.cartesian_prod(y, x).flip(-1)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Each interleaved pair of (B, heads, T, d) by its angle."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
