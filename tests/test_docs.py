"""What the documents show is what the program does."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import yaml
from typer.main import get_command

from pipelines import Options
from pipelines.cli import app
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


def scale(language: str) -> list[str]:
    """What the guide to clusters shows as code of a language."""
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_commands_of_the_scale_guide_are_understood() -> None:
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    (veca segment .*)$", text, re.MULTILINE)
    containers = [
        container["args"]
        for document in yaml.safe_load_all(scale("yaml")[0])
        for container in document["spec"].get("template", {}).get("spec", {}).get("containers", [])
    ]
    typed = [shlex.split(line, comments=True) for line in lines]
    typed += [[str(word) for word in words] for words in containers if words[0] == "veca"]
    assert len(typed) >= 4
    segment = get_command(app).commands["segment"]  # type: ignore[attr-defined]
    for words in typed:
        parsed = segment.make_context("segment", words[2:]).params
        assert parsed["images"]


def test_the_python_of_the_scale_guide_compiles_and_names_what_exists() -> None:
    (code,) = scale("python")
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in ("pipelines", "veca_core"):
            module = __import__(str(node.module), fromlist=[alias.name for alias in node.names])
            assert all(hasattr(module, alias.name) for alias in node.names)
    assert "dask" in Options.__dataclass_fields__
