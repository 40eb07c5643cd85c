"""The ordered bank of learned cores: their tokens and their coordinates. A budget is a prefix of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CoreBank(nn.Module):
    """M core tokens (M, D) and coordinate states rho (M, 2); a core lies at tanh(rho), as (x, y)."""

    def __init__(self, cores: int, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(cores, dim))
        self.coordinates = nn.Parameter(torch.empty(cores, 2))

    def forward(self, cores: int, batch: int) -> tuple[Tensor, Tensor]:
        """The first `cores` of the bank for each image: tokens (B, C, D) and rho (B, C, 2)."""
        tokens, rho = self.tokens[:cores], self.coordinates[:cores]
        return tokens.expand(batch, -1, -1), rho.expand(batch, -1, -1)


def farthest_points(count: int, pool: int = 1000, reach: float = 0.95) -> Tensor:
    """(count, 2) points that spread over [-reach, reach]^2, each the farthest from those before it.

    A prefix is therefore spread out too. Drawn from torch's current random state.
    """
    candidates = torch.empty(max(pool, count), 2).uniform_(-reach, reach)
    chosen = torch.empty(count, dtype=torch.long)
    distance = torch.full((len(candidates),), torch.inf)
    index = int(candidates.norm(dim=1).argmin())
    for i in range(count):
        chosen[i] = index
        distance = torch.minimum(distance, (candidates - candidates[index]).norm(dim=1))
        distance[index] = -1.0
        index = int(distance.argmax())
    return candidates[chosen]
