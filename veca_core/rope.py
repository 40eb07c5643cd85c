"""Rotary position embedding on two axes (design, section 2). Coordinates are (x, y) in [-1, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Table = tuple[Tensor, Tensor]
"""cos and sin of each token's angles, one for each pair of a head."""


def angular_frequencies(head_dim: int, off: float, off_from: str) -> Tensor:
    """(head_dim / 4,) radians per unit of coordinate: 2 pi / period_j, period_j = 100^(2j / (head_dim / 2)).

    The share `off` of them, at the low- or the high-frequency end, is zero: those pairs never turn.
    """
    count = head_dim // 4
    periods = 100.0 ** (2 * torch.arange(count, dtype=torch.float64) / (head_dim / 2))
    frequencies = 2 * math.pi / periods
    silent = round(off * count)
    if silent:
        frequencies[slice(-silent, None) if off_from == "low" else slice(0, silent)] = 0.0
    return frequencies.float()


def patch_coordinates(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """(h * w, 2) centres of the patches, row by row, as (x, y): 2 (i + 0.5) / n - 1 on each axis."""
    h, w = grid
    y = 2 * (torch.arange(h, device=device, dtype=torch.float32) + 0.5) / h - 1
    x = 2 * (torch.arange(w, device=device, dtype=torch.float32) + 0.5) / w - 1
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([xx, yy], dim=-1).reshape(h * w, 2)


def jittered(coordinates: Tensor, shift: float, rescale: float) -> Tensor:
    """Training's view of the patch coordinates: shifted by up to `shift`, scaled log-uniformly by up to `rescale`."""
    offset = torch.empty(2, device=coordinates.device).uniform_(-shift, shift)
    limit = math.log(rescale)
    scale = torch.empty(2, device=coordinates.device).uniform_(-limit, limit).exp()
    return (coordinates + offset) * scale


def rotation(coordinates: Tensor, frequencies: Tensor) -> Table:
    """cos and sin, each (..., head_dim / 2), for coordinates (..., 2); x turns a head's first half, y the second."""
    angles = coordinates.float().unsqueeze(-1) * frequencies  # (..., 2, head_dim / 4)
    angles = angles.flatten(-2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: Table) -> Tensor:
    """Turns each interleaved (even, odd) pair of x (..., T, head_dim) by the angle of its token."""
    cos, sin = (t.to(x.dtype) for t in table)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


def halves_first(head_dim: int, heads: int) -> Tensor:
    """(heads * head_dim,) the order of features that brings each head's even ones first, the odd ones behind them."""
    order = torch.cat([torch.arange(0, head_dim, 2), torch.arange(1, head_dim, 2)])
    return (torch.arange(heads).unsqueeze(1) * head_dim + order).flatten()


def rotate_halves(x: Tensor, table: Table) -> Tensor:
    """Like `rotate`, for x (..., T, heads, head_dim) in the order of `halves_first` and tables (..., T, 1, half)."""
    cos, sin = table
    even, odd = x.chunk(2, dim=-1)
    out = torch.empty_like(x)
    turned_even, turned_odd = out.chunk(2, dim=-1)
    torch.mul(even, cos, out=turned_even).addcmul_(odd, sin, value=-1)
    torch.mul(odd, cos, out=turned_odd).addcmul_(even, sin)
    return out
