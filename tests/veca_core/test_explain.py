"""The attention maps are the attention that the network really pays."""

from __future__ import annotations

import pytest
import torch
from networks import card, network

from veca_core.encoder import VecaEncoder
from veca_core.errors import ModelError
from veca_core.explain import core_attention, core_weights


def tiny_encoder() -> VecaEncoder:
    return network(card()).encoder


def test_weights_reproduce_what_the_layer_gives_its_cores() -> None:
    encoder = tiny_encoder()
    block = encoder.blocks[0]
    cores, patches = torch.randn(2, 8, encoder.config.dim), torch.randn(2, 12, encoder.config.dim)
    tables = encoder.core_table(torch.randn(2, 8, 2)), encoder.patch_table((3, 4))
    with torch.no_grad():
        wanted, _ = block.attention(cores, patches, *tables)
        weights = core_weights(block.attention, cores, patches, *tables)
        _, _, core_values = block.attention.project(cores, tables[0])
        _, _, patch_values = block.attention.project(patches, tables[1])
        found = block.attention.merge(weights @ torch.cat([core_values, patch_values], dim=2))
    assert torch.allclose(weights.sum(dim=-1), torch.ones(()), atol=1e-5)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_maps_have_a_layer_a_core_and_a_patch_each_and_are_shares() -> None:
    encoder = tiny_encoder().eval()
    images = torch.randn(1, 3, 3 * 16, 5 * 16)
    maps = core_attention(encoder, images, 16)
    assert maps.shape == (encoder.config.layers, 1, 16, 3, 5)
    assert (maps >= 0).all()
    assert (maps.sum(dim=(-2, -1)) <= 1 + 1e-5).all()


def test_a_layer_of_the_maps_sees_the_tokens_that_layer_sees() -> None:
    encoder = tiny_encoder().eval()
    images = torch.randn(1, 3, 64, 64)
    seen: list[torch.Tensor] = []

    def look(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _: object) -> None:
        weights = core_weights(module, *inputs)
        seen.append(weights[..., inputs[0].shape[1] :].mean(dim=1))

    hooks = [block.attention.register_forward_hook(look) for block in encoder.blocks]
    encoder(images, 8)  # with gradients the blocks run whole, each through its attention
    for hook in hooks:
        hook.remove()
    maps = core_attention(encoder, images, 8)
    assert torch.allclose(maps.flatten(3), torch.stack(seen), atol=1e-5)


def test_a_budget_that_cannot_be_run_is_told() -> None:
    with pytest.raises(ModelError):
        core_attention(tiny_encoder(), torch.zeros(1, 3, 32, 32), 7)
