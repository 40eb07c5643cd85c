"""What each core looks at: the network's own attention, layer by layer, as maps over the patches."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from veca_core.attention import Block, CoreAttention
from veca_core.encoder import VecaEncoder
from veca_core.rope import Table
from veca_core.stem import pad_to_patch


@torch.no_grad()
def core_attention(encoder: VecaEncoder, images: Tensor, cores: int | None = None) -> Tensor:
    """(L, B, C, h, w): how much of its attention a core gives to each patch in each layer, the mean over the heads.

    `images` is what the encoder takes. What is missing to a sum of one over (h, w), a core gives to cores. Raises
    ModelError for a budget that the encoder cannot run.
    """
    budget = encoder.config.check_budget(cores)
    stemmed = encoder.stem(pad_to_patch(images, encoder.config.patch))
    patches = stemmed.tokens.to(encoder.bank.tokens.dtype)  # (B, N, D)
    bank, rho = encoder.bank(budget, len(patches))  # (B, C, D), (B, C, 2)
    patch_table = encoder.patch_table(stemmed.grid)
    maps = []
    for i, module in enumerate(encoder.blocks):
        block = cast(Block, module)
        if i > 0:
            rho = rho + encoder.move_rates[i - 1] * encoder.moves[i - 1](bank)
        core_table = encoder.core_table(rho)
        normed = block.norm_attention(bank), block.norm_attention(patches)
        weights = core_weights(block.attention, *normed, core_table, patch_table)
        maps.append(weights[..., budget:].mean(dim=1).reshape(len(patches), budget, *stemmed.grid))
        bank, patches = block(bank, patches, core_table, patch_table)
    return torch.stack(maps)


def core_weights(
    attention: CoreAttention, cores: Tensor, patches: Tensor, core_table: Table, patch_table: Table
) -> Tensor:
    """(B, heads, C, C + N): the softmax that a layer's cores take their values with, from normalised tokens.

    R += W_o Attn(q(R), k([R; Z]), v([R; Z])) of arXiv 2605.12491: this is its softmax(q k^T / sqrt(d)).
    """
    queries, core_keys, _ = attention.project(cores, core_table)
    _, patch_keys, _ = attention.project(patches, patch_table)
    keys = torch.cat([core_keys, patch_keys], dim=2)
    scores = queries @ keys.transpose(-2, -1) * queries.shape[-1] ** -0.5
    weights: Tensor = scores.float().softmax(dim=-1)
    return weights
