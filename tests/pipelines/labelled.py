"""Small labelled data sets on disk, whose classes can be told by colour, and the recipes that train on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from pipelines.config import TrainRecipe, read_recipe

COLORS = np.array([(230, 220, 230), (90, 60, 140), (60, 150, 70)], np.uint8)
VALUES = np.array([0, 4, 9], np.uint8)
"""Mask values of the three classes: not their indices."""
CLASSES = [
    {"value": 0, "name": "background", "color": "#D9D9D9"},
    {"value": 4, "name": "nucleus", "color": "#00A86B"},
    {"value": 9, "name": "rare", "color": "#0000FF"},
]


def draw(height: int, width: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An RGB image and its class indices: discs, and one small square of the rare class."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    classes = np.zeros((height, width), np.uint8)
    for _ in range(4):
        cy, cx = rng.integers(height), rng.integers(width)
        classes[(y - cy) ** 2 + (x - cx) ** 2 < 80] = 1
    top, left = rng.integers(height - 8), rng.integers(width - 8)
    classes[top : top + 5, left : left + 5] = 2
    noise = rng.integers(-12, 13, (height, width, 3))
    return np.clip(COLORS[classes].astype(int) + noise, 0, 255).astype(np.uint8), classes


def write_data(folder: Path, count: int = 6) -> Path:
    """images/ and masks/ with files like 'case2_0.png': two images of each case."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        image, classes = draw(64 + 8 * (i % 3), 96 - 8 * (i % 2), seed=i)
        Image.fromarray(image).save(folder / "images" / f"case{i // 2}_{i % 2}.png")
        Image.fromarray(VALUES[classes]).save(folder / "masks" / f"case{i // 2}_{i % 2}.png")
    return folder


def content(**changed: Any) -> dict[str, Any]:
    """A recipe that trains in a second, as it stands in YAML."""
    return {
        "name": "tiny",
        "classes": CLASSES,
        "data": {"images": "images", "masks": "masks", "group": "(case[0-9])", "validate_on": ["case2"]},
        "window": 64,
        "network": {
            "preset": "tiny", "stem": "patch", "head": "linear",
            "overrides": {"dim": 48, "layers": 2, "heads": 3, "cores": 16},
        },
        "schedule": {"steps": 6, "batch": 2, "crop": 48, "warmup": 2, "validate_every": 3, "average": 0.5},
        "store": "float32",
        **changed,
    }  # fmt: skip


def write_recipe(folder: Path, **changed: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content(**changed)), encoding="utf-8")
    return path


def recipe(folder: Path, **changed: Any) -> TrainRecipe:
    return read_recipe(write_recipe(folder, **changed))
