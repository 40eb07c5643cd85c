"""VECA among other libraries: an encoder of segmentation-models-pytorch, and a network that saves and loads itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from networks import card, network, pixels

from veca_core import ModelError, Segmenter, load_model
from veca_core.smp import register_encoders


@pytest.fixture(scope="module", autouse=True)
def registered() -> list[str]:
    return register_encoders()


@pytest.mark.parametrize("name", ["veca_tiny", "veca_tiny_lite0"])
@pytest.mark.parametrize(("make", "depth"), [(smp.Unet, 5), (smp.Unet, 4), (smp.FPN, 5), (smp.DeepLabV3Plus, None)])
def test_decoders_of_that_library_take_it(name: str, make: Any, depth: int | None) -> None:
    options: dict[str, Any] = {"encoder_depth": depth} if depth else {}
    if make is smp.Unet:
        options["decoder_channels"] = (64, 48, 32, 16, 16)[:depth]
    if make is smp.DeepLabV3Plus:
        with pytest.raises(ModelError, match="VECA has no dilated stages"):
            make(name, encoder_weights=None)
        return
    unet = make(name, encoder_weights=None, in_channels=4, classes=3, **options)
    out = unet(torch.randn(2, 4, 64, 96))
    assert out.shape == (2, 3, 64, 96)
    out.mean().backward()
    assert unet.encoder.encoder.blocks[0].mlp.fc1.weight.grad.abs().sum() > 0


def test_a_depth_that_leaves_the_patches_out_is_refused() -> None:
    with pytest.raises(ModelError, match="patches lie at depth 4: with encoder_depth=3 only its stem would run"):
        smp.Unet("veca_tiny", encoder_weights=None, encoder_depth=3, decoder_channels=(64, 32, 16))


def test_its_maps_have_the_strides_and_widths_that_it_promises() -> None:
    encoder = smp.encoders.get_encoder("veca_tiny_lite0", in_channels=3, depth=5, weights=None).eval()
    images = torch.randn(1, 3, 96, 64)
    maps = encoder(images)
    assert [m.shape[1] for m in maps] == list(encoder.out_channels)
    assert [96 // m.shape[2] for m in maps] == [1, 2, 4, 8, 16, 32]
    with torch.no_grad():
        assert torch.equal(maps[4].detach(), encoder.encoder(images).features) or torch.allclose(
            maps[4], encoder.encoder(images).features, atol=1e-4
        )
        encoder.cores = 8
        assert not torch.allclose(encoder(images)[4], maps[4], atol=1e-4)


def test_every_preset_is_registered(registered: list[str]) -> None:
    assert {"veca_tiny", "veca_small", "veca_splus", "veca_base", "veca_large", "veca_small_lite0"} <= set(registered)
    assert set(registered) <= set(smp.encoders.encoders)


def test_a_network_saves_and_loads_itself(tmp_path: Path) -> None:
    described = card()
    plain = network(described)
    with pytest.raises(ModelError, match="needs a card to be saved with"):
        plain.save_pretrained(tmp_path / "none")
    plain.save_pretrained(tmp_path / "one", described)
    again = Segmenter.from_pretrained(tmp_path / "one")
    again.save_pretrained(tmp_path / "two")
    assert load_model(tmp_path / "two").digest == load_model(tmp_path / "one").digest
    with torch.no_grad():
        assert torch.equal(again(pixels(40, 50)), plain(pixels(40, 50)))
