"""The blocks without gradients, in bounded memory: patches are updated in place, chunk by chunk, and exactly.

A patch's update needs the cores and nothing else, and the cores' update is one softmax over all tokens. So each chunk
is finished before the next one starts, and its share of the cores' attention is folded into a running (maximum, sum,
weighted values), as in online softmax (Milakov and Gimelshein 2018). Peak memory is the token state and one chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from veca_core.attention import Block, CoreAttention, Table

CHUNK: Final = 2048
"""Tokens that are worked on at once, over the whole batch: their hidden layers then stay in a CPU's cache."""


class CoreSoftmax:
    """The cores' attention over tokens that come in pieces."""

    def __init__(self, queries: Tensor) -> None:
        """Queries (B, heads, C, d)."""
        self.queries = queries * queries.shape[-1] ** -0.5
        shape = queries.shape[:-1]
        self.maximum = queries.new_full(shape, -torch.inf, dtype=torch.float32)
        self.total = queries.new_zeros(shape, dtype=torch.float32)
        self.values = queries.new_zeros(queries.shape, dtype=torch.float32)

    def fold(self, keys: Tensor, values: Tensor) -> None:
        """Takes in the keys and values (B, heads, n, d) of some tokens; keeps no score."""
        scores = (self.queries @ keys.transpose(-2, -1)).float()  # (B, heads, C, n)
        maximum = torch.maximum(self.maximum, scores.amax(dim=-1))
        scores.sub_(maximum.unsqueeze(-1)).exp_()
        shrink = (self.maximum - maximum).exp_()
        self.total.mul_(shrink).add_(scores.sum(dim=-1))
        self.values.mul_(shrink.unsqueeze(-1)).add_((scores.to(values.dtype) @ values).float())
        self.maximum = maximum

    def result(self) -> Tensor:
        """(B, heads, C, d) float32."""
        return self.values / self.total.unsqueeze(-1)


def run_block(
    block: Block, cores: Tensor, patches: Tensor, core_table: Table, patch_table: Table, chunk: int
) -> Tensor:
    """One layer: updates `patches` (B, N, D) in place and returns the new cores (B, C, D).

    The same values as `Block.forward`, within float tolerance, for any chunk.
    """
    attention: CoreAttention = block.attention
    queries, keys, values = attention.project(block.norm_attention(cores), core_table)
    softmax = CoreSoftmax(queries)
    softmax.fold(keys, values)
    for part in pieces(patches, chunk):
        piece = patches[:, part]  # a view: what follows writes into the state
        table = (patch_table[0][part], patch_table[1][part])
        q, k, v = attention.project(block.norm_attention(piece), table)
        softmax.fold(k, v)
        piece += attention.merge(F.scaled_dot_product_attention(q, keys, values))
        piece += block.mlp(block.norm_mlp(piece))
    cores = cores + attention.merge(softmax.result().to(queries.dtype))
    out: Tensor = cores + block.mlp(block.norm_mlp(cores))
    return out


def pieces(patches: Tensor, chunk: int) -> Sequence[slice]:
    """Cuts N so that a piece has at most `chunk` tokens over the batch, and at least one each."""
    batch, count, _ = patches.shape
    step = max(1, chunk // batch)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]
