"""What an image or a model is, as plain lines for a person and as plain values for a program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiling import Source, open_image
from veca_core.card import Card
from veca_core.weights import WEIGHTS, find_model, load_card, shipped_models


def info(image: str | Path) -> dict[str, Any]:
    """Everything that opening an image tells, without reading a pixel. Never a label, a name or a date."""
    source = open_image(image)
    size = source.levels[0].size
    spacing = source.georef.spacing(size)
    return {
        "path": str(source.path),
        "kind": source.kind,
        "size": [size.height, size.width],
        "bands": list(source.bands),
        "dtype": str(source.dtype),
        "spacing": str(spacing) if spacing else None,
        "levels": [[level.size.height, level.size.width] for level in source.levels],
        "tile": [source.levels[0].chunk.height, source.levels[0].chunk.width],
        "crs": _crs_name(source),
        "transform": [float(v) for v in source.georef.transform[:6]],
        "details": dict(source.provenance),
        "warnings": list(source.warnings),
    }


def models() -> list[dict[str, Any]]:
    """The models that come with the package."""
    return [model_info(folder) for folder in shipped_models()]


def model_info(name: str | Path) -> dict[str, Any]:
    """One model's card and the size of its weights."""
    folder = find_model(name)
    card = load_card(folder)
    return {**card.model_dump(mode="json"), "megabytes": round((folder / WEIGHTS).stat().st_size / 1e6, 1)}


def info_lines(facts: dict[str, Any]) -> list[str]:
    """An image's facts for people."""
    height, width = facts["size"]
    return [
        facts["path"],
        f"  {facts['kind']}, {height} x {width} px, {len(facts['bands'])} bands ({', '.join(facts['bands'])}), "
        f"{facts['dtype']}",
        f"  pixel size: {facts['spacing'] or 'not stated; give it with --spacing'}",
        "  levels: " + ", ".join(f"{h} x {w}" for h, w in facts["levels"]),
        *([f"  CRS: {facts['crs']}"] if facts["crs"] else []),
        *(f"  {name}: {value}" for name, value in facts["details"].items()),
        *(f"  note: {warning}" for warning in facts["warnings"]),
    ]


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


def _crs_name(source: Source) -> str | None:
    if source.georef.crs is None:
        return None
    import pyproj

    crs = pyproj.CRS.from_user_input(source.georef.crs)
    return f"{crs.name}" + (f" ({':'.join(authority)})" if (authority := crs.to_authority()) else "")
