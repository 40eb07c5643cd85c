"""The encoder in bounded memory: the same result, whatever the chunk."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from veca_core import VecaConfig, VecaEncoder
from veca_core.streaming import CoreSoftmax, keeps_scores, pieces

CONFIG = VecaConfig(dim=48, layers=3, heads=3, cores=16)


@pytest.mark.parametrize("chunk", [1, 7, 24, 10_000])
def test_any_chunk_gives_what_the_whole_image_gives(chunk: int) -> None:
    torch.manual_seed(0)
    encoder = VecaEncoder(CONFIG).eval()
    images = torch.randn(2, 3, 96, 64)
    whole = encoder(images, cores=8)
    with torch.no_grad():
        streamed = encoder(images, cores=8, chunk=chunk)
    torch.testing.assert_close(streamed.patches, whole.patches, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(streamed.cores, whole.cores, atol=1e-5, rtol=1e-5)


def test_the_running_softmax_survives_scores_that_overflow() -> None:
    queries, keys, values = (torch.randn(1, 2, n, 8) * scale for n, scale in ((3, 60.0), (40, 60.0), (40, 1.0)))
    softmax = CoreSoftmax(queries)
    scores = keys @ queries.transpose(-2, -1) * 8**-0.5
    for start in range(0, 40, 9):
        softmax.fold(scores[:, :, start : start + 9].clone(), values[:, :, start : start + 9])
    expected = torch.nn.functional.scaled_dot_product_attention(queries.double(), keys.double(), values.double())
    torch.testing.assert_close(softmax.result(), expected.float(), atol=1e-4, rtol=1e-4)


@given(batch=st.integers(1, 5), count=st.integers(1, 40), chunk=st.integers(1, 60))
@settings(deadline=None)
def test_pieces_partition_the_tokens(batch: int, count: int, chunk: int) -> None:
    parts = pieces(torch.empty(batch, count, 1), chunk)
    covered = [i for part in parts for i in range(part.start, part.stop)]
    assert covered == list(range(count))
    assert all((part.stop - part.start) * batch <= max(chunk, batch) for part in parts)


def test_no_tensor_grows_with_patches_times_cores() -> None:
    """Beyond the token state itself, what a pass makes depends on the chunk and not on the image."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                Largest.size = max(Largest.size, out.numel())
            return out

    encoder = VecaEncoder(CONFIG).eval()
    with torch.no_grad(), Largest():
        encoder(torch.zeros(1, 3, 512, 512), chunk=64)  # 1,024 patches
    state = 1024 * CONFIG.dim
    pixels = 3 * 512 * 512
    assert max(state, pixels) >= Largest.size


def test_bfloat16_stays_close_to_float32_through_all_blocks() -> None:
    torch.manual_seed(0)
    encoder = VecaEncoder(VecaConfig(dim=96, layers=12, heads=3, cores=16)).eval()
    images = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        exact = encoder(images)
        with torch.autocast("cpu", torch.bfloat16):
            rough = encoder(images)
    assert rough.patches.dtype == torch.float32
    torch.testing.assert_close(rough.patches, exact.patches, atol=0.03, rtol=0.03)


@pytest.mark.parametrize(("cores", "batch"), [(8, 1), (8, 3), (264, 1), (264, 2)])
def test_stored_and_fused_scores_give_the_same(cores: int, batch: int) -> None:
    """With few cores a CPU stores a chunk's scores; with many, and elsewhere, it does not."""
    assert keeps_scores("cpu", 8)
    assert not keeps_scores("cpu", 264)
    assert not keeps_scores("cuda", 8)
    torch.manual_seed(0)
    encoder = VecaEncoder(replace(CONFIG, cores=264)).eval()
    images = torch.randn(batch, 3, 80, 48)
    whole = encoder(images, cores=cores)
    with torch.no_grad():
        streamed = encoder(images, cores=cores, chunk=4)
    torch.testing.assert_close(streamed.patches, whole.patches, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(streamed.cores, whole.cores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 16), (47, 33), (160, 16), (16, 160)])
@pytest.mark.parametrize("raw", [torch.uint8, torch.int32, torch.float32])
def test_raw_pixels_are_normalised_a_band_of_rows_at_a_time(height: int, width: int, raw: torch.dtype) -> None:
    torch.manual_seed(0)
    encoder = VecaEncoder(CONFIG).eval()
    pixels = torch.randint(0, 256, (2, height, width, 3)).to(raw).permute(0, 3, 1, 2)
    mean, deviation = torch.tensor([120.0, 100.0, 130.0]).view(1, 3, 1, 1), torch.full((1, 3, 1, 1), 60.0)
    whole = encoder((pixels.float() - mean) / deviation)
    with torch.no_grad():
        for chunk in (1, 3, 10_000):
            streamed = encoder(pixels, chunk=chunk, scale=(mean, deviation))
            torch.testing.assert_close(streamed.patches, whole.patches, atol=1e-5, rtol=1e-5)
            assert streamed.grid == whole.grid
            for finer, expected in zip(streamed.skips, whole.skips, strict=True):
                torch.testing.assert_close(finer, expected)
        assert encoder(pixels, scale=(mean, deviation), skips=False).skips == ()
