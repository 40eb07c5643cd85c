"""The network against its own equations, written out loop by loop in reference.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import official_checkpoint, plain_forward
from safetensors.torch import load_file

from veca_core import VecaEncoder, load_official_encoder, preset

IMAGE = torch.randn(3, 64, 48, generator=torch.Generator().manual_seed(9))
"""4 x 3 patches: not square, so that rows and columns cannot be confused."""


def saved(folder: Path, checkpoint: dict[str, Any]) -> Path:
    torch.save(checkpoint, folder / "checkpoint.pt")
    return folder / "checkpoint.pt"


def agree(encoder: VecaEncoder, checkpoint: dict[str, Any], budget: int, image: torch.Tensor = IMAGE) -> None:
    cores, patches = plain_forward(checkpoint, image, budget)
    with torch.no_grad():
        tokens = encoder(image[None], cores=budget)
    np.testing.assert_allclose(tokens.cores[0].numpy(), cores, atol=1e-4, rtol=0)
    np.testing.assert_allclose(tokens.patches[0].numpy(), patches, atol=1e-4, rtol=0)


def test_the_reference_itself_agrees_with_the_published_implementation(golden: Path) -> None:
    checkpoint = torch.load(golden / "official_tiny_projected.pt", weights_only=True)
    outputs = load_file(golden / "official_tiny_projected_outputs.safetensors")
    budgets = sorted({int(key.split(".")[2]) for key in outputs if key.startswith("global.0.")})
    assert budgets
    for budget in budgets:
        cores, patches = plain_forward(checkpoint, outputs["input.0"][0], budget)
        np.testing.assert_allclose(cores[0], outputs[f"global.0.{budget}"][0], atol=1e-4)
        np.testing.assert_allclose(patches, outputs[f"patches.0.{budget}"][0], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "layers"),
    [("small", 12), pytest.param("base", 3, id="base, with three layers: the whole of it is a file of 350 MB")],
)
def test_the_published_sizes_compute_the_equations(tmp_path: Path, name: str, layers: int) -> None:
    sizes = {"small": {"hidden_dim": 384, "num_heads": 6}, "base": {"hidden_dim": 768, "num_heads": 12}}
    checkpoint = official_checkpoint(**sizes[name], num_layers=layers)
    path = saved(tmp_path, checkpoint)
    encoder = load_official_encoder(path)
    path.unlink()
    assert encoder.config == preset(name, layers=layers)
    assert int((encoder.frequencies == 0).sum()) == 2, "a head of 64 has 16 frequencies, 2 of them switched off"
    for budget in (8, 64):
        agree(encoder, checkpoint, budget)


@pytest.mark.parametrize(
    "changed",
    [
        {"distill_output_dim": 40},
        {"patch_embed_use_ln": True},
        {"in_channels": 5},
        {"patch_size": 8},
        {"rope_zero_freqs_from": "high", "rope_p_zero_freqs": 0.5},
        {"rope_p_zero_freqs": 0.0},
        {"num_query_tokens": 24, "nested_chunk_size": 4},
        {"mlp_ratio": 4.0},
        {"num_layers": 1},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_every_published_setting_computes_the_equations(tmp_path: Path, changed: dict[str, Any]) -> None:
    checkpoint = official_checkpoint(**{"hidden_dim": 96, "num_layers": 3, **changed})
    encoder = load_official_encoder(saved(tmp_path, checkpoint))
    image = torch.randn(encoder.config.in_channels, 64, 48, generator=torch.Generator().manual_seed(2))
    for budget in (encoder.config.core_chunk, encoder.config.cores):
        agree(encoder, checkpoint, budget, image)
