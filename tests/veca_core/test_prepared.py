"""Weights prepared for inference: the same numbers by another road, made once, and never stale."""

from __future__ import annotations

import copy
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F

from veca_core import VecaConfig, VecaEncoder, rope
from veca_core.prepared import Prepared, Product, packs, prepared
from veca_core.rope import halves_first, rotate, rotate_halves

CONFIG = VecaConfig(dim=48, layers=2, heads=3, cores=16)
CPU = torch.device("cpu")


def encoder(seed: int = 0) -> VecaEncoder:
    torch.manual_seed(seed)
    return VecaEncoder(CONFIG).eval()


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_a_linear_layer_packed_or_not(
    enabled: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", enabled)
    x, weight, bias = torch.randn(70, 48), torch.randn(30, 48), torch.randn(30)
    with torch.inference_mode():
        assert enabled or not packs(CPU, dtype)
        product = Product(weight, bias, dtype)
        # Views of larger weights, as they are cut out of a fused matrix.
        part = Product(weight[10:], bias[10:], dtype)
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        expected = F.linear(x.to(dtype).float(), weight.to(dtype).float(), bias)
        torch.testing.assert_close(product(x.to(dtype)).float(), expected, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(part(x.to(dtype)).float(), expected[:, 10:], atol=tolerance, rtol=tolerance)


def test_other_number_types_are_never_packed() -> None:
    assert not packs(CPU, torch.float64)
    assert not packs(torch.device("cuda"), torch.bfloat16)
    whole = encoder().double()
    with torch.no_grad():
        assert whole(torch.randn(1, 3, 32, 32, dtype=torch.float64)).patches.dtype == torch.float64


def test_rotating_halves_is_rotating_pairs_in_another_order() -> None:
    heads, width, tokens = 3, 16, 5
    x = torch.randn(tokens, heads * width)
    angles = torch.randn(tokens, width // 2)
    table = angles.cos(), angles.sin()
    order = halves_first(width, heads)
    assert sorted(order.tolist()) == list(range(heads * width))
    pairs = rotate(x.view(tokens, heads, width).transpose(0, 1), table).transpose(0, 1).reshape(tokens, -1)
    halves = rotate_halves(x[:, order].view(tokens, heads, width), (table[0].unsqueeze(1), table[1].unsqueeze(1)))
    torch.testing.assert_close(halves.reshape(tokens, -1), pairs[:, order])


def test_weights_are_prepared_once_and_again_when_they_change() -> None:
    whole, image = encoder(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = whole(image)
        first = prepared(whole)
        assert prepared(whole) is first
        assert first.patch_table(whole, (4, 4)) is first.patch_table(whole, (4, 4))
        whole.load_state_dict(encoder(seed=1).state_dict())
        assert prepared(whole) is not first
        after = whole(image)
        torch.testing.assert_close(after.patches, encoder(seed=1)(image).patches)
    assert not torch.allclose(after.patches, before.patches)
    torch.optim.SGD(whole.parameters(), lr=1.0).zero_grad()
    whole(image).patches.square().sum().backward()
    torch.optim.SGD(whole.parameters(), lr=0.1).step()
    with torch.no_grad():
        torch.testing.assert_close(whole(image).patches, whole.train(False)(image, chunk=3).patches)
        with torch.enable_grad():
            trained = whole(image).patches
        torch.testing.assert_close(whole(image).patches, trained.detach(), atol=1e-5, rtol=1e-5)


def test_an_encoder_that_has_run_can_still_be_copied() -> None:
    whole, image = encoder(), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = whole(image).patches
        torch.testing.assert_close(copy.deepcopy(whole)(image).patches, expected)
        assert copy.deepcopy(whole).to("meta")(image.to("meta")).patches.shape == expected.shape


def test_threads_that_share_an_encoder_get_the_rotations_of_their_own_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    used, grids = encoder(), ((5, 7), (7, 5))
    ready = prepared(used)
    right = {grid: ready.patch_table(used, grid)[0] for grid in grids}
    made = Prepared._rotations

    def slowly(self: Prepared, of: VecaEncoder, grid: tuple[int, int]) -> rope.Table:
        """Lets another thread come between asking for a table and taking it."""
        time.sleep(0.002)
        return made(self, of, grid)

    def ask(number: int) -> bool:
        grid = grids[number % 2]
        return torch.equal(ready.patch_table(used, grid)[0], right[grid])

    monkeypatch.setattr(Prepared, "_rotations", slowly)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(200)))
