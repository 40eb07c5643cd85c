"""What the documents show is what the program does."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from pipelines.config import TrainRecipe

ROOT = Path(__file__).parents[1]


def test_the_recipe_in_the_training_guide_lists_every_field_with_its_default() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    match = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert match is not None
    shown = TrainRecipe.model_validate(yaml.safe_load(match[1]))
    minimal = TrainRecipe(name=shown.name, classes=shown.classes, data=shown.data)
    assert shown == minimal
    assert set(yaml.safe_load(match[1])) == set(TrainRecipe.model_fields)
