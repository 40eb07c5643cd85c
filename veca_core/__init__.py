"""The VECA network, its weights and its memory. Knows no images, and no files but weights."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from veca_core.card import Card
    from veca_core.config import PRESETS, VecaConfig, preset
    from veca_core.encoder import Tokens, VecaEncoder
    from veca_core.errors import ModelError
    from veca_core.model import Segmenter, build
    from veca_core.weights import Model, load_card, load_model, load_official_encoder, save_model, shipped_models

_HOMES: Final = {
    "Card": "veca_core.card",
    "PRESETS": "veca_core.config",
    "VecaConfig": "veca_core.config",
    "preset": "veca_core.config",
    "Tokens": "veca_core.encoder",
    "VecaEncoder": "veca_core.encoder",
    "ModelError": "veca_core.errors",
    "Segmenter": "veca_core.model",
    "build": "veca_core.model",
    "Model": "veca_core.weights",
    "load_card": "veca_core.weights",
    "load_model": "veca_core.weights",
    "load_official_encoder": "veca_core.weights",
    "save_model": "veca_core.weights",
    "shipped_models": "veca_core.weights",
}
"""Public name -> its module, loaded when it is first used: torch alone takes seconds."""

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
    return getattr(import_module(_HOMES[name]), name)
