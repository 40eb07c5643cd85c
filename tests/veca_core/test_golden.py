"""Agreement with what the published implementation gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from veca_core import load_official_encoder


@pytest.mark.parametrize("name", ["official_tiny", "official_tiny_projected"])
def test_every_budget_agrees_with_the_published_implementation(golden: Path, name: str) -> None:
    encoder = load_official_encoder(golden / f"{name}.pt")
    outputs = load_file(golden / f"{name}_outputs.safetensors")
    compared = 0
    for key, expected in outputs.items():
        what, image, *budget = key.split(".")
        if what == "input":
            continue
        with torch.no_grad():
            tokens = encoder(outputs[f"input.{image}"], cores=int(budget[0]))
        got = tokens.cores[:, 0] if what == "global" else tokens.patches
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
        compared += 1
    assert compared >= 4
