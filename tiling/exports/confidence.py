"""probability.tif and uncertainty.tif: the arrays beside the labels, in the form that the image's field expects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tiling.errors import ImageError
from tiling.exports.cog import write_cog
from tiling.exports.mask import is_microscopic
from tiling.exports.ome_tiff import write_ome_tiff
from tiling.labels import Labels
from tiling.view import View


def write_probability(labels: Labels, folder: Path, _image: View | None, tags: Mapping[str, str]) -> list[Path]:
    """A channel for each class: 0..254 stand for probabilities 0..1, 255 is no data."""
    return _write(labels, folder, "probability", tags)


def write_uncertainty(labels: Labels, folder: Path, _image: View | None, tags: Mapping[str, str]) -> list[Path]:
    """Entropy, and how far few and all cores disagree: 0..254 stand for 0..1, 255 is no data."""
    return _write(labels, folder, "uncertainty", tags)


def _write(labels: Labels, folder: Path, layer: str, tags: Mapping[str, str]) -> list[Path]:
    if layer not in labels.layers:
        raise ImageError(f"{labels.path}: holds no {layer}; segment the image again with --exports {layer}")
    about = {f"VECA_{name.upper()}": text for name, text in labels.layers[layer].about.items()}
    write = write_ome_tiff if is_microscopic(labels) else write_cog
    return [write(labels, folder / f"{layer}.tif", {**tags, **about}, layer)]
