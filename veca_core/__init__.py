"""The VECA network, its weights and its memory. Knows no images, and no files but weights."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import veca_core.heap  # noqa: F401 - before torch makes a tensor

if TYPE_CHECKING:
    from veca_core.card import Card
    from veca_core.config import PRESETS, VecaConfig, preset
    from veca_core.encoder import Tokens, VecaEncoder
    from veca_core.errors import ModelError
    from veca_core.model import Segmenter, build
    from veca_core.weights import Model, load_card, load_model, load_official_encoder, save_model, shipped_models

if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    # Read when torch is loaded. Its threads spin while they wait for each other: where somebody else wants the core,
    # the threads that read and stitch among them, that made runs several times slower; alone it gains nothing.
    os.environ["GOMP_SPINCOUNT"] = "1000"

_HOMES: Final = {
    "Card": "card",
    "PRESETS": "config",
    "VecaConfig": "config",
    "preset": "config",
    "Tokens": "encoder",
    "VecaEncoder": "encoder",
    "ModelError": "errors",
    "Segmenter": "model",
    "build": "model",
    "Model": "weights",
    "load_card": "weights",
    "load_model": "weights",
    "load_official_encoder": "weights",
    "save_model": "weights",
    "shipped_models": "weights",
}
"""Public name -> its module here, loaded when it is first used: torch takes seconds, and errors need none of it."""

__all__ = [
    "PRESETS",
    "Card",
    "Model",
    "ModelError",
    "Segmenter",
    "Tokens",
    "VecaConfig",
    "VecaEncoder",
    "build",
    "load_card",
    "load_model",
    "load_official_encoder",
    "preset",
    "save_model",
    "shipped_models",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
