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
from pipelines.rival import Rival, load_rival
from veca_core.card import Bands

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


def test_a_folder_without_a_rival_is_named(tmp_path: Path) -> None:
    (tmp_path / "rival.json").write_text("{}")
    with pytest.raises(RequestError, match="holds no rival that can be read"):
        load_rival(tmp_path)
