"""Training steps made fast: the same gradients, in less time."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pipelines.fast import quicken

CPU = torch.device("cpu")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 5, 2, 2, groups=16), nn.ReLU(), nn.Conv2d(16, 4, 1)
    )


def test_a_quickened_network_has_the_gradients_of_the_plain_one_within_bfloat16() -> None:
    plain = network()
    quick = copy.deepcopy(plain)
    quicken(quick, CPU, torch.bfloat16)
    images = torch.randn(2, 3, 24, 24)
    exact = plain(images)
    exact.square().mean().backward()
    with torch.autocast("cpu", torch.bfloat16):
        fast = quick(images)
    fast.float().square().mean().backward()
    torch.testing.assert_close(fast.float(), exact, atol=0.03, rtol=0.03)
    for ours, theirs in zip(quick.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.nn.functional.cosine_similarity(ours.grad.flatten(), theirs.grad.flatten(), 0) > 0.999
    assert quick.state_dict().keys() == plain.state_dict().keys()


def test_depthwise_layers_compute_in_float32() -> None:
    quick = network()
    quicken(quick, CPU, torch.bfloat16)
    seen: list[torch.dtype] = []
    quick[1].weight.register_hook(lambda gradient: seen.append(gradient.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        out = quick(torch.randn(1, 3, 8, 8))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert seen == [torch.float32]
    assert isinstance(copy.deepcopy(quick)[1], nn.Conv2d)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_elsewhere_nothing_changes(device: str) -> None:
    plain = network().to(device)
    quicken(plain, torch.device(device), torch.float32 if device == "cpu" else torch.bfloat16)
    assert [type(m).__name__ for m in plain] == ["Conv2d", "Conv2d", "ReLU", "Conv2d"]
