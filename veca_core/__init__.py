"""The VECA network, its weights and its memory. Knows no images, and no files but weights."""

from veca_core.card import Card
from veca_core.config import PRESETS, VecaConfig, preset
from veca_core.encoder import Tokens, VecaEncoder
from veca_core.errors import ModelError
from veca_core.model import Segmenter, build
from veca_core.weights import Model, load_card, load_model, load_official_encoder, save_model, shipped_models

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
