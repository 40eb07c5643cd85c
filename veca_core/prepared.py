"""An encoder's weights as inference wants them: in the number type that is multiplied, packed once, not for each chunk.

Weights are prepared when a pass first needs them, and again after they have changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from veca_core import rope
from veca_core.attention import Block

if TYPE_CHECKING:
    from veca_core.encoder import VecaEncoder

PACKED_TYPES: Final = (torch.float32, torch.bfloat16)
PACKED_ROWS: Final = 2048
"""Rows of the products that packing is tuned for; any number of rows may follow."""


class Product:
    """x W^T + b for many x, in one number type.

    On a CPU the weights are laid out once as oneDNN reads them, which torch.compile does too; `linear` does it again
    for each call. Measured on an AVX-512 BF16 CPU: 8 % less time for the whole encoder in bfloat16, and 15 % for a
    product in float32. The price is a second copy of the weights.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        """Weight (out, in) and bias (out,) of any number type."""
        self.weight = weight.detach().to(dtype)
        self.bias = bias.detach().to(dtype)
        self.packed = packs(weight.device, dtype)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), PACKED_ROWS)

    def __call__(self, x: Tensor) -> Tensor:
        """(n, in) -> (n, out); x is of the product's number type."""
        if self.packed:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return out
        return nn.functional.linear(x, self.weight, self.bias)


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights are packed: on CPUs with oneDNN, for the number types that it multiplies there."""
    return (
        device.type == "cpu"
        and dtype in PACKED_TYPES
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and (dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
    )


class PreparedBlock:
    """One block's weights, for heads that keep the even numbers of all rotated pairs first, and the odd ones behind.

    Queries and keys meet in sums over a head's width, which do not depend on its order; in this one a rotation reads
    and writes runs of numbers.
    """

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        attention, mlp = block.attention, block.mlp
        self.dtype = dtype
        self.heads = attention.heads
        dim = attention.out.in_features
        order = rope.halves_first(dim // self.heads, 2 * self.heads).to(attention.qkv.weight.device)
        weight, bias = attention.qkv.weight, attention.qkv.bias
        self.norm_attention = block.norm_attention
        self.qk = Product(weight[order], bias[order], dtype)
        self.v = Product(weight[2 * dim :], bias[2 * dim :], dtype)
        self.out = Product(attention.out.weight, attention.out.bias, dtype)
        self.norm_mlp = block.norm_mlp
        hidden = mlp.fc2.in_features
        self.gate = Product(mlp.fc1.weight[:hidden], mlp.fc1.bias[:hidden], dtype)
        self.up = Product(mlp.fc1.weight[hidden:], mlp.fc1.bias[hidden:], dtype)
        self.down = Product(mlp.fc2.weight, mlp.fc2.bias, dtype)


class Prepared:
    """All blocks' weights in one number type, and the rotations of the last grid that was asked for."""

    def __init__(self, encoder: VecaEncoder, dtype: torch.dtype, stamp: tuple[Any, ...]) -> None:
        self.stamp = stamp
        self.dtype = dtype
        self.blocks = [PreparedBlock(block, dtype) for block in encoder.blocks if isinstance(block, Block)]
        self.table: tuple[tuple[int, int], rope.Table] | None = None

    def patch_table(self, encoder: VecaEncoder, grid: tuple[int, int]) -> rope.Table:
        """cos and sin (N, 1, head_dim / 2) of the patches, in the number type; the 1 is for the heads."""
        if encoder.training:
            return self._rotations(encoder, grid)
        known = self.table  # read once: another thread may want the table of another grid
        if known is None or known[0] != grid:
            known = self.table = grid, self._rotations(encoder, grid)
        return known[1]

    def _rotations(self, encoder: VecaEncoder, grid: tuple[int, int]) -> rope.Table:
        cos, sin = encoder.patch_table(grid)
        return cos.to(self.dtype).unsqueeze(-2), sin.to(self.dtype).unsqueeze(-2)


_PREPARED: Final[WeakKeyDictionary[VecaEncoder, Prepared]] = WeakKeyDictionary()
"""Beside the encoders and not in them: packed weights can be neither copied nor sent to another process."""


def prepared(encoder: VecaEncoder) -> Prepared:
    """The encoder's weights in the number type of its matrix products: autocast's, or else their own."""
    dtype = product_type(encoder.bank.tokens)
    stamp = (dtype, packs(encoder.bank.tokens.device, dtype), *_stamps(encoder.blocks.parameters()))
    known = _PREPARED.get(encoder)
    if known is None or known.stamp != stamp:
        _PREPARED.pop(encoder, None)  # before the new ones are made: both together may not fit
        known = _PREPARED[encoder] = Prepared(encoder, dtype, stamp)
    return known


def product_type(weight: Tensor) -> torch.dtype:
    """What a weight is multiplied in: autocast's number type where that is on, else its own."""
    device = weight.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def _stamps(weights: Iterable[Tensor]) -> Iterable[tuple[Any, ...]]:
    """What changes when a weight does. Writing through `.data` is not seen; nothing here does that."""
    for weight in weights:
        yield id(weight), weight.device, weight.dtype, 0 if weight.is_inference() else weight._version
