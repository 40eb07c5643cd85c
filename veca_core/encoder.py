"""The VECA encoder (arXiv 2605.12491): patches and an elastic prefix of cores through L blocks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from veca_core import rope
from veca_core.attention import Block
from veca_core.config import VecaConfig
from veca_core.cores import CoreBank, farthest_points
from veca_core.prepared import prepared
from veca_core.stem import Scale, Stem, build_stem, pad_to_patch
from veca_core.streaming import default_chunk, pieces, run_block


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the encoder gives for B images."""

    cores: Tensor
    """(B, C, D); the first core is the global feature."""
    patches: Tensor
    """(B, N, D), row by row."""
    grid: tuple[int, int]
    """(h, w) of the patches, N = h * w."""
    skips: tuple[Tensor, ...]
    """The stem's finer feature maps, finest first, for decoders."""

    @property
    def features(self) -> Tensor:
        """The patches as a map (B, D, h, w), without a copy: the channels of a patch lie together."""
        return torch.unflatten(self.patches, 1, self.grid).permute(0, 3, 1, 2)


class VecaEncoder(nn.Module):
    """Images (B, bands, H, W), normalised floats -> Tokens, with any budget of cores that is a multiple of the chunk.

    Sides that are no multiple of the patch are padded by repeating the last row and column; the grid is
    (ceil(H / patch), ceil(W / patch)).
    """

    def __init__(self, config: VecaConfig, stem: Stem | None = None) -> None:
        super().__init__()
        self.config = config
        self.stem = stem if stem is not None else build_stem("patch", config)
        self.bank = CoreBank(config.cores, config.dim)
        self.blocks = nn.ModuleList(Block(config.dim, config.heads, config.hidden) for _ in range(config.layers))
        self.moves = nn.ModuleList(nn.Linear(config.dim, 2) for _ in range(config.layers - 1))
        self.move_rates = nn.Parameter(torch.empty(max(0, config.layers - 1)))
        self.norm = nn.LayerNorm(config.dim)
        self.output = nn.Linear(config.dim, config.output_dim) if config.output_dim else nn.Identity()
        frequencies = rope.angular_frequencies(config.head_dim, config.rope_off, config.rope_off_from)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.frequencies: Tensor
        self.initialise()

    def forward(
        self,
        images: Tensor,
        cores: int | None = None,
        chunk: int | None = None,
        scale: Scale | None = None,
        skips: bool = True,
    ) -> Tokens:
        """Runs with the first `cores` of the bank, or all of it; raises ModelError for a budget it cannot run.

        Without gradients the blocks run in bounded memory, `chunk` tokens at a time, with the same result. With a
        `scale`, images are raw pixels of any number type. Where nobody asks for the `skips` they are not made.
        """
        budget = self.config.check_budget(cores)
        chunk = chunk or default_chunk(images.device.type)
        stemmed = self.stem(pad_to_patch(images, self.config.patch), scale, skips, chunk)
        # Under autocast the stem gives bfloat16, but what the blocks add up keeps the weights' own precision.
        patches = stemmed.tokens.to(self.bank.tokens.dtype).contiguous()  # (B, N, D)
        run = self.run if torch.is_grad_enabled() else self.stream
        bank, patches = run(patches, stemmed.grid, budget, chunk)
        return Tokens(bank, patches, stemmed.grid, stemmed.skips)

    def run(self, patches: Tensor, grid: tuple[int, int], budget: int, chunk: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Cores (B, C, D) and patches (B, N, D) behind the last block, with everything that gradients need."""
        bank, rho = self.bank(budget, patches.shape[0])  # (B, C, D), (B, C, 2)
        patch_table = self.patch_table(grid)
        for i, block in enumerate(self.blocks):
            rho = self.moved(i, rho, bank)
            bank, patches = block(bank, patches, self.core_table(rho), patch_table)
        return self.finish(bank), self.finish(patches)

    def stream(self, patches: Tensor, grid: tuple[int, int], budget: int, chunk: int) -> tuple[Tensor, Tensor]:
        """The same without gradients: patches are overwritten, a chunk at a time."""
        weights = prepared(self)
        patch_table = weights.patch_table(self, grid)
        with plain_products(patches.device):
            bank, rho = self.bank(budget, len(patches))
            for i, block in enumerate(weights.blocks):
                rho = self.moved(i, rho, bank)
                cos, sin = (t.to(weights.dtype).transpose(1, 2) for t in self.core_table(rho))
                bank = run_block(block, bank, patches, (cos, sin), patch_table, chunk)
            return self.finish(bank), self.finish_in_place(patches, chunk)

    def moved(self, i: int, rho: Tensor, bank: Tensor) -> Tensor:
        """Where the cores (B, C, D) lie in block i, given rho (B, C, 2) in the one before."""
        return rho + self.move_rates[i - 1] * self.moves[i - 1](bank) if i > 0 else rho

    def finish(self, tokens: Tensor) -> Tensor:
        """Final norm, and the output projection where there is one."""
        out: Tensor = self.output(self.norm(tokens))
        return out

    def finish_in_place(self, patches: Tensor, chunk: int) -> Tensor:
        """`finish`, written over patches (B, N, D) where it keeps their width."""
        out = patches.new_empty(*patches.shape[:2], self.config.output_dim) if self.config.output_dim else patches
        for part in pieces(patches, chunk):
            out[:, part] = self.finish(patches[:, part])
        return out

    def core_table(self, rho: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (B, 1, C, head_dim / 2) where the cores lie now; the 1 is for the heads."""
        cos, sin = rope.rotation(rho.float().tanh(), self.frequencies)
        return cos.unsqueeze(1), sin.unsqueeze(1)

    def patch_table(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """cos and sin (N, head_dim / 2) of the patches' centres; jittered while training."""
        coordinates = rope.patch_coordinates(grid, self.frequencies.device)
        if self.training:
            coordinates = rope.jittered(coordinates, self.config.rope_shift, self.config.rope_rescale)
        return rope.rotation(coordinates, self.frequencies)

    @torch.no_grad()
    def initialise(self) -> None:
        """Truncated normal weights of 0.02 and zero biases in the blocks, spread-out cores, slow core moves."""
        for module in (*self.blocks, *self.moves, self.output):
            for part in module.modules():
                if isinstance(part, nn.Linear):
                    nn.init.trunc_normal_(part.weight, std=0.02)
                    nn.init.zeros_(part.bias)
        nn.init.trunc_normal_(self.bank.tokens, std=0.02)
        self.bank.coordinates.copy_(torch.atanh(farthest_points(self.config.cores)))
        nn.init.constant_(self.move_rates, 0.01)


def plain_products(device: torch.device) -> AbstractContextManager[None]:
    """Without autocast: what is multiplied has the right number type already."""
    off = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if off else nullcontext()
