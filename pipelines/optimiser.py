"""How weights are changed: which of them decay, which learn slowly, and how fast at which step."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn

from pipelines.config import ScheduleRecipe


def make_optimiser(network: nn.Module, schedule: ScheduleRecipe, slow: str = "") -> torch.optim.Optimizer:
    """AdamW over `parameter_groups`."""
    groups = parameter_groups(network, schedule, slow)
    return torch.optim.AdamW(groups, lr=schedule.rate, weight_decay=schedule.weight_decay)


def parameter_groups(network: nn.Module, schedule: ScheduleRecipe, slow: str = "") -> list[dict[str, Any]]:
    """Matrices decay, vectors do not; parameters whose names start with `slow` learn at `stem_rate` of the rate.

    With `layer_decay`, what lies deeper under the head learns more slowly (Clark et al. 2020). What is frozen is left
    out.
    """
    layers = 1 + max((_depth(name) or 0 for name, _ in network.named_parameters()), default=0)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = schedule.stem_rate if slow and name.startswith(slow) else 1.0
        depth = _depth(name)
        if depth is not None:
            factor *= schedule.layer_decay ** (layers - depth)
        groups.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "factor": factor, "weight_decay": schedule.weight_decay if decays else 0.0}
        for (factor, decays), parameters in groups.items()
    ]


def learning_rate(step: int, schedule: ScheduleRecipe) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    if step < schedule.warmup:
        return schedule.rate * (step + 1) / schedule.warmup
    progress = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return schedule.rate * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, progress))) / 2)


def _depth(name: str) -> int | None:
    """How far from the pixels a parameter lies: 0 for stem and cores, i + 1 for block i; None outside the encoder."""
    if match := re.match(r"encoder\.(?:blocks|moves)\.(\d+)\.", name):
        return int(match[1]) + 1
    return 0 if name.startswith(("encoder.stem.", "encoder.bank.", "encoder.move_rates")) else None
