"""Predicted memory against CUDA's, traced without a GPU: tensors that have a size, a type and a device, and no data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import LITE
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn import functional as F

from veca_core import VecaEncoder, build, preset
from veca_core.card import Architecture, Bands
from veca_core.memory import NetworkSize, encoder_bytes, forward_bytes
from veca_core.model import network_size
from veca_core.prepared import prepared


def on_fake_cuda(network: nn.Module, dtype: torch.dtype) -> None:
    """Gives a module fake CUDA tensors in place of its own."""
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(torch.empty(weight.shape, dtype=dtype, device="cuda"))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")


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


def traced_network(stem: str, head: str, side: int, dtype: torch.dtype, batch: int) -> tuple[int, NetworkSize]:
    """Peak bytes of a whole network beyond weights and pixels, as `load_model` leaves it and autocast runs it."""
    fields = {key: getattr(preset("tiny"), key) for key in preset("tiny").__dataclass_fields__}
    bands = Bands(names=("r", "g", "b"), mean=(0, 0, 0), std=(1, 1, 1))
    model = build(Architecture(encoder=fields, stem=stem, head=head), bands, 5).eval()
    model = model.to(memory_format=torch.channels_last)
    size = network_size(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_fake_cuda(model, torch.float32)
        pixels = torch.zeros(batch, 3, side, side, dtype=torch.uint8, device="cuda")
        tracker: Any = MemTracker()
        with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            prepared(model.encoder)
            tracker.track_external(model, pixels)
            with tracker:
                logits = model(pixels, 64, 4096)
                logits.softmax(dim=1)
        peak = tracker.get_tracker_snapshot("peak")[torch.device("cuda:0")]
    # Prepared: all blocks in another number type, or else queries and keys in their other order.
    ready = size.prepared(dtype.itemsize) if dtype != torch.float32 else size.layers * 2 * size.dim * (size.dim + 1) * 4
    return int(peak["Total"]) - size.weights - ready - pixels.numel(), size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("side", "batch"), [(512, 1), (512, 8), (1024, 2)])
@pytest.mark.parametrize(("stem", "head"), [("patch", "linear"), ("patch", "unet"), (LITE, "unet")])
def test_the_predicted_peak_of_a_network_is_the_traced_one(
    stem: str, head: str, side: int, batch: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(F, "scaled_dot_product_attention", fused)
    # Autocast asks whether there is a GPU; the tensors here only say that they are on one.
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    measured, size = traced_network(stem, head, side, dtype, batch)
    predicted = forward_bytes(size, side, side, batch, 64, 4096, dtype.itemsize, "fused")
    said = f"measured {measured / 2**20:.1f} MiB, predicted {predicted / 2**20:.1f} MiB, {predicted / measured:.2f}"
    assert 0.95 * measured <= predicted <= 1.15 * measured, said
