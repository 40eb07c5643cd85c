"""How weights are changed: which of them decay, which learn slowly, and how fast at which step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from pipelines.config import ScheduleRecipe


def make_optimiser(network: nn.Module, schedule: ScheduleRecipe, slow: str = "") -> torch.optim.Optimizer:
    """AdamW over `parameter_groups`."""
    groups = parameter_groups(network, schedule, slow)
    return torch.optim.AdamW(groups, lr=schedule.rate, weight_decay=schedule.weight_decay)


def parameter_groups(network: nn.Module, schedule: ScheduleRecipe, slow: str = "") -> list[dict[str, Any]]:
    """Matrices decay, vectors do not; parameters whose names start with `slow` learn at `stem_rate` of the rate."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        groups.setdefault((bool(slow) and name.startswith(slow), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "factor": schedule.stem_rate if held else 1.0,
            "weight_decay": schedule.weight_decay if decays else 0.0,
        }
        for (held, decays), parameters in groups.items()
    ]


def learning_rate(step: int, schedule: ScheduleRecipe) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    if step < schedule.warmup:
        return schedule.rate * (step + 1) / schedule.warmup
    progress = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return schedule.rate * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, progress))) / 2)
