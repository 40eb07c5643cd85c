"""Predicted memory against CUDA's, traced without a GPU: tensors that have a size, a type and a device, and no data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn import functional as F

from veca_core import VecaEncoder, preset
from veca_core.memory import encoder_bytes
from veca_core.prepared import prepared


def on_fake_cuda(encoder: VecaEncoder, dtype: torch.dtype) -> VecaEncoder:
    """Gives a module fake CUDA tensors in place of its own."""
    for module in encoder.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(torch.empty(weight.shape, dtype=dtype, device="cuda"))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
    return encoder


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What a GPU runs, and what is not chosen where there is none."""
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
    return out


def traced(side: int, dtype: torch.dtype, batch: int, cores: int, chunk: int) -> int:
    """Peak bytes beyond images and weights."""
    encoder = VecaEncoder(preset("small", layers=2, cores=512)).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_fake_cuda(encoder, dtype)
        images = torch.zeros(batch, 3, side, side, dtype=torch.uint8, device="cuda")
        scale = torch.zeros(1, 3, 1, 1, device="cuda"), torch.ones(1, 3, 1, 1, device="cuda")
        prepared(encoder)
        tracker: Any = MemTracker()
        tracker.track_external(encoder, images)
        with torch.no_grad(), tracker:
            encoder(images, cores, chunk=chunk, scale=scale, skips=False)
        peak = tracker.get_tracker_snapshot("peak")[torch.device("cuda:0")]
    weights = sum(w.numel() * w.element_size() for w in encoder.parameters())
    weights += 2 * 768 * (384 + 1) * dtype.itemsize  # prepared: queries and keys in their other order, in two layers
    return int(peak["Total"]) - weights - images.numel() * images.element_size()


@pytest.mark.parametrize("kernel", ["fused", "plain"])
@pytest.mark.parametrize(("side", "batch"), [(1024, 1), (2048, 1), (1024, 4)])
@pytest.mark.parametrize(("cores", "chunk"), [(8, 4096), (64, 4096), (64, 16384), (512, 4096)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_predicted_peak_is_the_traced_one(
    kernel: str,
    side: int,
    batch: int,
    cores: int,
    chunk: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kernel == "fused":
        monkeypatch.setattr(F, "scaled_dot_product_attention", fused)
    measured = traced(side, dtype, batch, cores, chunk)
    config = preset("small")
    predicted = encoder_bytes(
        (side // 16) ** 2, config.dim, config.hidden, config.heads, cores, batch, chunk, dtype.itemsize, kernel,
        values=768, state=dtype.itemsize,
    )  # fmt: skip
    said = f"measured {measured / 2**20:.1f} MiB, predicted {predicted / 2**20:.1f} MiB, {predicted / measured:.2f}"
    assert 0.95 * measured <= predicted <= 1.15 * measured, said
