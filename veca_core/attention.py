"""Core-periphery attention: patches meet only through the cores, at 2NC + C^2 comparisons (design, section 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from veca_core.rope import Table, rotate


class CoreAttention(nn.Module):
    """R += W_o Attn(q(R), k([R; Z]), v([R; Z])) and Z += W_o Attn(q(Z), k(R), v(R)), with one set of weights."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, cores: Tensor, patches: Tensor, core_table: Table, patch_table: Table) -> tuple[Tensor, Tensor]:
        """Updates for normalised cores (B, C, D) and patches (B, N, D); both see the tokens as they came in."""
        q_r, k_r, v_r = self.project(cores, core_table)  # each (B, heads, C, d)
        q_z, k_z, v_z = self.project(patches, patch_table)  # each (B, heads, N, d)
        keys, values = torch.cat([k_r, k_z], dim=2), torch.cat([v_r, v_z], dim=2)
        to_cores = F.scaled_dot_product_attention(q_r, keys, values)
        to_patches = F.scaled_dot_product_attention(q_z, k_r, v_r)
        return self.merge(to_cores), self.merge(to_patches)

    def project(self, tokens: Tensor, table: Table) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as (B, heads, T, d), q and k rotated to where their tokens lie."""
        qkv = self.qkv(tokens).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return rotate(q, table), rotate(k, table), v

    def merge(self, x: Tensor) -> Tensor:
        """(B, heads, T, d) -> W_o x as (B, T, D)."""
        out: Tensor = self.out(x.transpose(1, 2).flatten(2))
        return out


class SwiGlu(nn.Module):
    """W_2 (SiLU(u) * v), [u, v] = W_1 x."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.fc1(x).chunk(2, dim=-1)
        out: Tensor = self.fc2(F.silu(u) * v)
        return out


class Block(nn.Module):
    """One pre-norm layer: core-periphery attention, then SwiGLU on cores and patches alike."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = CoreAttention(dim, heads)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = SwiGlu(dim, hidden)

    def forward(self, cores: Tensor, patches: Tensor, core_table: Table, patch_table: Table) -> tuple[Tensor, Tensor]:
        to_cores, to_patches = self.attention(
            self.norm_attention(cores), self.norm_attention(patches), core_table, patch_table
        )
        cores, patches = cores + to_cores, patches + to_patches
        return cores + self.mlp(self.norm_mlp(cores)), patches + self.mlp(self.norm_mlp(patches))
