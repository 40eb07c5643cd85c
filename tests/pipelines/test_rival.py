"""Rivals: networks of another library, trained and kept by the same code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from labelled import content, recipe, write_data

from pipelines import train
from pipelines.errors import RequestError
from pipelines.rival import Rival, fair_terms, load_rival
from veca_core import load_card
from veca_core.card import Bands, Card, PixelSize

BANDS = Bands(names=("red", "green", "blue"), mean=(100.0, 120.0, 140.0), std=(50.0, 60.0, 70.0))
SPEC = "smp:Unet:tu-tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("labelled"))


def network(**changed: Any) -> dict[str, Any]:
    return {**content()["network"], "rival": SPEC, **changed}


def test_a_rival_is_trained_validated_and_comes_back(data: Path, tmp_path: Path) -> None:
    trained = train(recipe(data, network=network()), tmp_path, device="cpu")
    assert {p.name for p in trained.folder.iterdir()} == {"rival.json", "rival.safetensors"}
    assert json.loads((trained.folder / "rival.json").read_text())["score"]["mean_iou"] == pytest.approx(
        trained.mean_iou, abs=1e-4
    )
    again, other = load_rival(trained.folder), load_rival(trained.folder)
    pixels = torch.randint(0, 256, (1, 3, 40, 70), dtype=torch.uint8)
    with torch.no_grad():
        assert again(pixels).shape == (1, 3, 40, 70)
        assert torch.equal(again(pixels, 8), other(pixels))


def test_a_rival_is_that_librarys_network_on_normalised_pixels() -> None:
    torch.manual_seed(0)
    rival = Rival("smp:Unet:resnet18", BANDS, 4).eval()
    pixels = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    images = (pixels - torch.tensor(BANDS.mean).view(3, 1, 1)) / torch.tensor(BANDS.std).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(rival(pixels), rival.body(images))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("Unet", "cannot read the rival 'Unet'; write smp:Unet:"),
        ("timm:Unet:resnet18", "cannot read the rival"),
        ("smp:Unet:", "cannot read the rival"),
        ("smp:Vnet:resnet18", "has no network 'Vnet:resnet18'"),
        ("smp:Unet:resnet0", "has no network 'Unet:resnet0'"),
    ],
)
def test_a_rival_that_does_not_exist_is_said(spec: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        Rival(spec, BANDS, 2)


@pytest.fixture(scope="module")
def card() -> Card:
    return load_card("nuclei")


def test_a_rival_of_a_model_that_went_on_from_another_starts_from_imagenet_and_that_is_said(
    data: Path, card: Card
) -> None:
    described = recipe(data, network={**content()["network"], "pretrained": "base/best", "keep": 0.3})
    terms = fair_terms(described, card, SPEC)
    network = terms.recipe.network
    assert (network.rival, network.pretrained, network.keep) == (SPEC, "imagenet", 0.0)
    assert terms.start.startswith(f"{SPEC} starts from ImageNet weights, where the recipe goes on from base/best:")
    assert terms.recipe.schedule == described.schedule
    for start in ("imagenet", None):
        alike = fair_terms(recipe(data, network={**content()["network"], "pretrained": start}), card, SPEC)
        assert (alike.recipe.network.pretrained, alike.start) == (start, "")


def test_a_rival_says_the_classes_of_the_model_in_their_order_at_its_pixel_size(data: Path, card: Card) -> None:
    card = card.model_copy(update={"spacing": PixelSize(value=0.5, unit="um")})
    classes = [c.model_dump() for c in reversed(card.classes)]
    made = fair_terms(recipe(data, classes=classes), card, SPEC).recipe
    for name in ("classes", "bands", "spacing", "window"):
        assert getattr(made, name) == getattr(card, name), name


@pytest.mark.parametrize(
    ("spec", "changed", "reason"),
    [
        ("smp:Unet:resnet18", {"network": {"pretrained": "base/best", "keep": 0.3}},
         "starts from base/best, and there are no ImageNet weights for 'resnet18'"),
        ("smp:Unet:resnet18", {"network": {"pretrained": "imagenet"}}, "from imagenet weights, and there are no"),
        (SPEC, {"schedule": {"freeze": True}}, "a rival learns whole, at one rate, and the recipe has freeze True"),
        (SPEC, {"schedule": {"layer_decay": 0.75}}, "layer_decay 0.75; make schedule.freeze false"),
    ],
)  # fmt: skip
def test_a_recipe_that_no_rival_can_learn_by_is_refused(
    data: Path, card: Card, spec: str, changed: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        fair_terms(recipe(data, **changed), card, spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"network": network(pretrained="base/best")}, "network: a rival cannot start from base/best; make pretrained"),
        ({"network": network(), "schedule": {"freeze": True}}, "a rival learns whole"),
    ],
)
def test_a_recipe_of_a_rival_that_it_would_not_follow_is_refused(
    data: Path, changed: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RequestError, match=reason):
        recipe(data, **changed)


def test_the_scores_tell_where_a_rival_started(
    data: Path, tmp_path: Path, veca: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr("pipelines.candidate.load_imagenet", lambda _body, name, _cache: started.append(name))
    base = train(recipe(data), tmp_path / "base", device="cpu").folder
    recipe(data, network={**content()["network"], "pretrained": str(base), "keep": 0.3})
    out = tmp_path / "scores"
    said = veca(
        "evaluate", base, data / "recipe.yaml", "--cores", 16, "--against", SPEC, "--out", out, "--device", "cpu",
        "--set", "schedule.steps=2", "--set", "schedule.seed=7",
    )  # fmt: skip
    assert said.status == 0, said.err
    assert started == ["tu-tf_efficientnet_lite0"]
    assert f"note: {SPEC} starts from ImageNet weights" in said.err
    (note,) = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["notes"]
    assert "it has 2 steps to learn in" in note
    assert note in (out / "summary.html").read_text(encoding="utf-8")
    assert "scedule: Extra inputs" in veca("evaluate", base, data / "recipe.yaml", "--set", "scedule.steps=2").line


def test_a_folder_without_a_rival_is_named(tmp_path: Path) -> None:
    (tmp_path / "rival.json").write_text("{}")
    with pytest.raises(RequestError, match="holds no rival that can be read"):
        load_rival(tmp_path)
