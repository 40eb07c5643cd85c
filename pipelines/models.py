"""What a model is, as plain lines for a person and as plain values for a program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from veca_core.card import Card
from veca_core.weights import WEIGHTS, find_model, load_card, shipped_models


def models() -> list[dict[str, Any]]:
    """The models that come with the package."""
    return [model_info(folder) for folder in shipped_models()]


def model_info(name: str | Path) -> dict[str, Any]:
    """One model's card and the size of its weights."""
    folder = find_model(name)
    card = load_card(folder)
    return {**card.model_dump(mode="json"), "megabytes": round((folder / WEIGHTS).stat().st_size / 1e6, 1)}


def model_lines(card: Card, megabytes: float) -> list[str]:
    """A model's card for people."""
    config = card.architecture.config
    spacing = f"{card.spacing.value:g} {card.spacing.unit}/px" if card.spacing else "as the image is"
    return [
        f"{card.name} ({megabytes:.1f} MB): {card.summary}",
        f"  classes: {', '.join(f'{c.value} {c.name}' for c in card.classes)}",
        f"  reads: {', '.join(card.bands.names)} at {spacing}, window {card.window} px",
        f"  cores: {config.budgets[0]} to {config.cores} in steps of {config.core_chunk}",
        *(f"  {s.cores} cores: mean IoU {s.mean_iou:.3f}, mean Dice {s.mean_dice:.3f}" for s in card.scores),
        *([f"  measured on: {card.validation}"] if card.validation else []),
        *([f"  data: {card.data}"] if card.data else []),
        *([f"  licence: {card.licence}"] if card.licence else []),
        *(f"  limit: {line}" for line in card.limits),
    ]
