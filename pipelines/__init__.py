"""Puts images and network together: segment, train and evaluate, as functions that a notebook calls."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import veca_core  # noqa: F401 - before torch: says how its threads wait

if TYPE_CHECKING:
    from pipelines.bundle import Bundle
    from pipelines.conversion import convert
    from pipelines.distillation import distill
    from pipelines.evaluation import evaluate
    from pipelines.job import Options
    from pipelines.planning import Planned, plan
    from pipelines.segmentation import segment, segment_all
    from pipelines.training import train

_HOMES: Final = {
    "Bundle": "pipelines.bundle",
    "convert": "pipelines.conversion",
    "distill": "pipelines.distillation",
    "evaluate": "pipelines.evaluation",
    "Options": "pipelines.job",
    "Planned": "pipelines.planning",
    "plan": "pipelines.planning",
    "segment": "pipelines.segmentation",
    "segment_all": "pipelines.segmentation",
    "train": "pipelines.training",
}
"""Public name -> its module, loaded when it is first used: torch alone takes seconds."""

__all__ = [
    "Bundle",
    "Options",
    "Planned",
    "convert",
    "distill",
    "evaluate",
    "plan",
    "segment",
    "segment_all",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
