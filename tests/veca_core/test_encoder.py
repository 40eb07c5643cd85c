"""What the encoder promises for any budget, size and number of bands; and that nothing in it grows with N squared."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from veca_core import ModelError, VecaConfig, VecaEncoder, preset
from veca_core.cores import farthest_points
from veca_core.stem import pad_to_patch

TINY = VecaConfig(dim=48, layers=2, heads=3, cores=24)


def encoder(**changed: Any) -> VecaEncoder:
    torch.manual_seed(0)
    return VecaEncoder(VecaConfig(**{"dim": 48, "layers": 2, "heads": 3, "cores": 24, **changed})).eval()


@pytest.mark.parametrize(("cores", "chunk"), [(64, 8), (24, 8), (12, 4), (6, 6)])
def test_every_multiple_of_the_chunk_runs_and_no_other_number(cores: int, chunk: int) -> None:
    network = encoder(cores=cores, core_chunk=chunk)
    image = torch.randn(1, 3, 32, 32)
    for asked in range(-chunk, cores + 2 * chunk):
        if asked % chunk == 0 and 0 < asked <= cores:
            with torch.no_grad():
                assert network(image, asked).cores.shape == (1, asked, 48)
        else:
            with pytest.raises(ModelError, match=f"with {asked} cores; ask for a multiple of {chunk} from"):
                network(image, asked)
    with torch.no_grad():
        assert network(image).cores.shape == (1, cores, 48)


def test_a_smaller_budget_gives_another_answer() -> None:
    network, image = encoder(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(network(image, 8).patches, network(image, 24).patches)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 3), st.sampled_from([8, 16]), st.integers(1, 2))
def test_any_size_and_any_number_of_bands_gives_a_grid_of_whole_patches(
    height: int, width: int, bands: int, patch: int, batch: int
) -> None:
    network = encoder(in_channels=bands, patch=patch)
    with torch.no_grad():
        tokens = network(torch.randn(batch, bands, height, width), 8)
    assert tokens.grid == (math.ceil(height / patch), math.ceil(width / patch))
    assert tokens.patches.shape == (batch, tokens.grid[0] * tokens.grid[1], 48)
    assert tokens.features.shape == (batch, 48, *tokens.grid)
    assert torch.isfinite(tokens.patches).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([4, 14, 16]))
def test_padding_repeats_the_last_row_and_column(height: int, width: int, patch: int) -> None:
    image = torch.arange(2 * height * width, dtype=torch.float32).view(1, 2, height, width)
    padded = pad_to_patch(image, patch)
    down, right = padded.shape[2] - height, padded.shape[3] - width
    assert 0 <= down < patch
    assert 0 <= right < patch
    assert torch.equal(padded, torch.nn.functional.pad(image, (0, right, 0, down), mode="replicate"))


def test_images_of_a_batch_do_not_see_each_other() -> None:
    network, images = encoder(), torch.randn(3, 3, 48, 32)
    with torch.no_grad():
        together, alone = network(images, 16), network(images[1:2], 16)
    torch.testing.assert_close(together.patches[1:2], alone.patches, atol=1e-5, rtol=1e-5)


def test_rows_and_columns_are_told_apart() -> None:
    network, image = encoder(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        turned = network(image.transpose(2, 3), 24).features.transpose(2, 3)
        assert not torch.allclose(network(image, 24).features, turned, atol=1e-3)


def test_places_are_jittered_while_training_and_only_then() -> None:
    network, image = encoder(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(image).patches, network(image).patches)
        network.train()
        first, second = network(image).patches, network(image).patches
        assert not torch.equal(first, second)
        network.eval()
        assert not torch.equal(network(image).patches, first)


def test_jitter_can_be_turned_off() -> None:
    network, image = encoder(rope_shift=0.0, rope_rescale=1.0), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        still = network(image).patches
        assert torch.allclose(network.train()(image).patches, still, atol=1e-6)


class Largest(TorchDispatchMode):
    """Remembers the most numbers that any tensor held."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        self.seen.add(str(func))
        return result


def largest_tensor(network: VecaEncoder, side: int, *, gradients: bool) -> int:
    with torch.set_grad_enabled(gradients), Largest() as watch:
        network(torch.randn(1, 3, side, side), chunk=64)
    assert any("scaled_dot_product" in name for name in watch.seen), "attention was not seen at all"
    return watch.numel


@pytest.mark.parametrize("gradients", [False, True])
def test_tensors_grow_with_pixels_and_scores_are_never_stored(gradients: bool) -> None:
    # So many cores, and so little width, that scores would outgrow everything else.
    network = encoder(cores=512, patch=8)
    small, large = (largest_tensor(network, side, gradients=gradients) for side in (128, 256))
    tokens, heads, cores = 32 * 32, 3, 512
    assert large < heads * tokens * cores
    assert large < tokens * tokens
    assert large <= 4.5 * small


def test_farthest_points_spread_and_so_does_every_prefix() -> None:
    torch.manual_seed(0)
    points = farthest_points(64)
    assert points.abs().max() <= 0.95
    gaps = [torch.pdist(points[:count]).min() for count in range(2, 65)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(gaps))
    assert gaps[-1] > 0.1


def test_new_cores_lie_where_they_were_spread() -> None:
    places = encoder(cores=64).bank.coordinates.tanh()
    assert torch.pdist(places).min() > 0.1
    assert places.abs().max() < 0.96


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"heads": 5}, "head's width"),
        ({"dim": 50, "heads": 5}, "head's width must be a multiple of 4, got dim 50 over 5"),
        ({"heads": 0}, "heads must be a positive whole number, got 0"),
        ({"dim": "48"}, "dim must be a positive whole number, got '48'"),
        ({"dim": 48.0}, "dim must be"),
        ({"layers": -1}, "layers must be"),
        ({"patch": -1}, "patch must be"),
        ({"core_chunk": 0}, "core_chunk must be"),
        ({"output_dim": 0}, "output_dim must be"),
        ({"cores": 20}, "chunks of 8, got a bank of 20"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be positive"),
        ({"rope_off": 1.5}, "rope_off from 0 to 1"),
        ({"rope_rescale": 0.0}, "rope_rescale at least 1"),
        ({"rope_off_from": "top"}, "low or high, got 'top'"),
        ({"budget_weights": ()}, "budget_weights"),
        ({"budget_weights": (0, 0)}, "budget_weights"),
    ],
)
def test_sizes_that_make_no_network_are_refused(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        preset("tiny", **changed)


def test_presets_are_those_of_the_paper() -> None:
    published = {name: preset(name) for name in ("small", "splus", "base", "large")}
    sizes = {name: (c.layers, c.dim, c.heads, c.mlp_ratio) for name, c in published.items()}
    assert sizes == {
        "small": (12, 384, 6, 2.66667),
        "splus": (12, 384, 6, 4.0),
        "base": (12, 768, 12, 2.66667),
        "large": (24, 1024, 16, 2.66667),
    }
    assert all((preset(name).cores, preset(name).patch) == (64, 16) for name in sizes)
    assert preset("base").draw_weights == (1, 1, 2, 2, 3, 3, 4, 4)
    with pytest.raises(ModelError, match="no preset 'huge'; the presets are tiny, small"):
        preset("huge")


@given(st.integers(1, 20), st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_there_is_one_draw_weight_for_each_budget(chunks: int, weights: list[int]) -> None:
    config = VecaConfig(dim=48, layers=1, heads=3, cores=8 * chunks, budget_weights=tuple(weights))
    assert len(config.draw_weights) == len(config.budgets) == chunks
    assert config.draw_weights[: len(weights)] == tuple(weights)[:chunks]
