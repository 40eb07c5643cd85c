"""What the documents show is what the program does."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from pipelines.config import TrainRecipe
from veca_core import load_card

ROOT = Path(__file__).parents[1]


def test_the_recipe_in_the_training_guide_lists_every_field_with_its_default() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    match = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert match is not None
    shown = TrainRecipe.model_validate(yaml.safe_load(match[1]))
    minimal = TrainRecipe(name=shown.name, classes=shown.classes, data=shown.data)
    assert shown == minimal
    assert set(yaml.safe_load(match[1])) == set(TrainRecipe.model_fields)


def test_the_scores_in_the_readme_are_those_of_the_models_cards() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("aerial-landcover", "nuclei"):
        card = load_card(name)
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        shown = [float(cell) for cell in re.findall(r"\b0\.\d{3}\b", row)]
        recorded = [card.score(cores) for cores in (8, 32, 64)]
        assert shown == [round(score.mean_iou, 3) for score in recorded if score is not None]
