"""The blocks without gradients, in bounded memory: patches are updated in place, chunk by chunk, and exactly.

A patch's update needs the cores and nothing else, and the cores' update is one softmax over all tokens. So each chunk
is finished before the next one starts, and its share of the cores' attention is folded into a running (maximum, sum,
weighted values), as in online softmax (Milakov and Gimelshein 2018). Peak memory is the token state and one chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from veca_core.prepared import PreparedBlock
from veca_core.rope import Table, rotate_halves

CHUNKS: Final = {"cpu": 2048}
"""Tokens that are worked on at once, over the whole batch: their hidden layers then stay in a CPU's cache."""
LARGE_CHUNK: Final = 16384
"""The same on every other device: enough to keep it busy."""
FUSED_FROM: Final = 256
"""Cores from which a CPU, too, computes the patches' attention without keeping scores."""


def default_chunk(device: str) -> int:
    """Tokens that are worked on at once on a type of device."""
    return CHUNKS.get(device, LARGE_CHUNK)


def keeps_scores(device: str, cores: int) -> bool:
    """Whether the patches' scores are stored, for one chunk at a time.

    On a CPU with few cores two plain products and a softmax take half the time of the fused attention, and the
    patches' scores come out of one product with the cores' own.
    """
    return device == "cpu" and cores < FUSED_FROM


def attention_kind(device: str, cores: int) -> str:
    """How the patches' attention is computed, by its name in `memory.ATTENTIONS`."""
    if keeps_scores(device, cores):
        return "stored"
    return {"cpu": "fused on a CPU", "cuda": "fused"}.get(device, "plain")


class CoreSoftmax:
    """The cores' attention over tokens that come in pieces: softmax(scores) @ values."""

    def __init__(self, like: Tensor) -> None:
        """`like` (B, heads, C, d) is of the result's shape."""
        self.maximum = like.new_full(like.shape[:-1], -torch.inf, dtype=torch.float32)
        self.total = like.new_zeros(like.shape[:-1], dtype=torch.float32)
        self.values = like.new_zeros(like.shape, dtype=torch.float32)

    def fold(self, scores: Tensor, values: Tensor) -> None:
        """Takes in n tokens by their scores (B, heads, n, C), which are overwritten, and values (B, heads, n, d)."""
        maximum = torch.maximum(self.maximum, scores.amax(dim=-2).float())
        # What has not the scores' own precision would shift them by less than it says.
        shares = scores.sub_(maximum.to(scores.dtype).unsqueeze(-2)).exp_()
        shrink = (self.maximum - maximum).exp_()
        self.total.mul_(shrink).add_(shares.sum(dim=-2, dtype=torch.float32))
        self.values.mul_(shrink.unsqueeze(-1)).add_(shares.transpose(-2, -1) @ values)
        self.maximum = maximum

    def result(self) -> Tensor:
        """(B, heads, C, d) float32."""
        return self.values / self.total.unsqueeze(-1)


def run_block(
    block: PreparedBlock, cores: Tensor, patches: Tensor, core_table: Table, patch_table: Table, chunk: int
) -> Tensor:
    """One layer: updates `patches` (B, N, D) in place and returns the new cores (B, C, D).

    Tables are cos and sin, (B, C, 1, d / 2) of the cores and (N, 1, d / 2) of the patches. The same values as
    `Block.forward`, within float tolerance, for any chunk.
    """
    cores, heads = cores.clone(), block.heads
    qk_r, v_r = project(block, cores, core_table)
    q_r, k_r = qk_r[:, :heads], qk_r[:, heads:]
    # What patches' queries and patches' keys meet, scaled: the cores' keys and the cores' queries. (B, 2 heads, d, C)
    opposite = (torch.cat([k_r, q_r], dim=1) * q_r.shape[-1] ** -0.5).transpose(-2, -1).contiguous()
    to_cores = CoreSoftmax(q_r)
    to_cores.fold(k_r @ opposite[:, heads:], v_r)
    for part in pieces(patches, chunk):
        piece = patches[:, part]  # a view: what follows writes into the state
        table = patch_table[0][part], patch_table[1][part]
        attend(block, piece, mix(block, piece, table, opposite, (k_r, v_r), to_cores))
        feed_forward(block, piece)
    attend(block, cores, to_cores.result())
    feed_forward(block, cores)
    return cores


def mix(
    block: PreparedBlock,
    piece: Tensor,
    table: Table,
    opposite: Tensor,
    seen: tuple[Tensor, Tensor],
    to_cores: CoreSoftmax,
) -> Tensor:
    """What patches (B, n, D) take from the cores' keys and values, (B, heads, n, d); folds in what they give them."""
    heads = block.heads
    qk, v = project(block, piece, table)
    if keeps_scores(piece.device.type, opposite.shape[-1]):
        scores = qk @ opposite  # (B, 2 heads, n, C)
        mixed: Tensor = scores[:, :heads].softmax(dim=-1) @ seen[1]
        to_cores.fold(scores[:, heads:], v)
    else:
        mixed = F.scaled_dot_product_attention(qk[:, :heads], *seen)
        to_cores.fold(qk[:, heads:] @ opposite[:, heads:], v)
    return mixed


def project(block: PreparedBlock, tokens: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    """Tokens (B, T, D) -> q and k (B, 2 heads, T, d), rotated to where their tokens lie, and v (B, heads, T, d)."""
    batch, count, _ = tokens.shape
    x = normal(block.norm_attention, tokens, block.dtype)
    qk = rotate_halves(block.qk(x).view(batch, count, 2 * block.heads, -1), table)
    v = block.v(x).view(batch, count, block.heads, -1)
    return qk.transpose(1, 2), v.transpose(1, 2)


def attend(block: PreparedBlock, tokens: Tensor, mixed: Tensor) -> None:
    """Tokens (B, T, D) += W_o mixed, for values mixed by attention (B, heads, T, d)."""
    tokens += block.out(mixed.transpose(1, 2).reshape(-1, tokens.shape[-1]).to(block.dtype)).view(tokens.shape)


def feed_forward(block: PreparedBlock, tokens: Tensor) -> None:
    """Tokens (B, T, D) += W_2 (SiLU(u) * v), [u, v] = W_1 LN(tokens)."""
    x = normal(block.norm_mlp, tokens, block.dtype)
    hidden = F.silu(block.gate(x), inplace=True).mul_(block.up(x))
    tokens += block.down(hidden).view(tokens.shape)


def normal(norm: nn.Module, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Normalised tokens (B, T, D) as rows (B * T, D) of a number type."""
    out: Tensor = norm(tokens)
    return out.to(dtype).flatten(0, 1)


def pieces(patches: Tensor, chunk: int) -> Sequence[slice]:
    """Cuts N so that a piece has at most `chunk` tokens over the batch, and at least one each."""
    batch, count, _ = patches.shape
    step = max(1, chunk // batch)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]
