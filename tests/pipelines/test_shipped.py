"""The models that come with the package: small, described, measured, and running."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import Options, segment
from veca_core import load_card, load_model, shipped_models

NAMES = ("aerial-landcover", "nuclei")
LARGEST = 15_000_000
"""Bytes."""

every_model = pytest.mark.parametrize("name", sorted({*NAMES, *(folder.name for folder in shipped_models())}))


def test_these_models_are_shipped() -> None:
    assert {folder.name for folder in shipped_models()} >= set(NAMES)


@every_model
def test_a_shipped_model_is_small(name: str) -> None:
    (folder,) = [folder for folder in shipped_models() if folder.name == name]
    assert {p.name for p in folder.iterdir()} == {"model.json", "model.safetensors"}
    assert sum(p.stat().st_size for p in folder.iterdir()) <= LARGEST


@every_model
def test_its_card_says_what_it_is_and_how_good(name: str) -> None:
    card = load_card(name)
    assert card.name == name
    assert len(card.classes) >= 2
    for field in ("summary", "licence", "recipe", "data", "validation"):
        assert getattr(card, field).strip(), f"the card of {name} says nothing of its {field}"
    assert card.limits
    assert all(line.strip() for line in card.limits)
    assert tuple(score.cores for score in card.scores) == card.architecture.config.budgets
    for score in card.scores:
        assert set(score.iou) == {c.name for c in card.classes}
        assert score.mean_iou == pytest.approx(np.mean(list(score.iou.values())), abs=2e-4)
        assert 0.3 < score.mean_iou < score.mean_dice <= 1


@every_model
def test_few_cores_cost_at_most_two_points(name: str) -> None:
    scores = load_card(name).scores
    assert scores[0].cores == 8
    assert scores[0].mean_iou >= scores[-1].mean_iou - 0.02


@every_model
def test_its_page_in_the_docs_is_that_of_its_card(name: str, tmp_path: Path, veca: Any) -> None:
    said = veca("models", name, "--out", tmp_path)
    assert said.status == 0, said.err
    docs = Path(__file__).parents[2] / "docs" / "models"
    page = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
    assert page == (docs / f"{name}.md").read_text(encoding="utf-8"), f"run veca models {name} --out docs/models"
    for score in load_card(name).scores:
        assert score.interval
        assert f"| {score.mean_iou:.3f} | {score.interval[0]:.3f}-{score.interval[1]:.3f} |" in page
    for folder in (tmp_path, docs):
        with Image.open(folder / f"{name}-cores.png") as picture:
            assert picture.width > 300
    assert "name it" in veca("models", "--out", tmp_path).line


@every_model
def test_it_runs_with_few_cores_and_with_all(name: str) -> None:
    model = load_model(name)
    pixels = torch.randint(0, 256, (1, len(model.card.bands.names), 100, 130), dtype=torch.uint8)
    config = model.network.encoder.config
    with torch.inference_mode():
        for budget in (config.budgets[0], config.cores):
            logits = model.network(pixels, budget)
            assert logits.shape == (1, len(model.card.classes), 100, 130)
            assert torch.isfinite(logits).all()


@every_model
def test_it_segments(name: str, tmp_path: Path) -> None:
    model = load_model(name)
    pixels = np.random.default_rng(0).integers(0, 256, (100, 130, len(model.card.bands.names)), dtype=np.uint8)
    options = Options(device="cpu", spacing="native", exports=("mask",))
    bundle = segment(pixels, model, tmp_path, options, name="noise")
    assert set(np.unique(bundle.labels().levels[0][:])) <= {c.value for c in model.card.classes}
