"""A small network and a picture that are written as formulas, and what the network's equations give for them."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from veca_core import Tokens, VecaConfig, VecaEncoder

KNOWN: Final[dict[int, tuple[float, ...]]] = {
    8: (-1.356673, -0.011545, 1.458377, -0.571718, -2.135049, -1.451013, -1.517161, -1.225924),
    64: (-2.273537, -0.751173, 0.747089, -1.424689, -2.167178, -1.301627, -1.62408, -1.524879),
}
"""For a number of cores: `sample` of the result in float64. tests/pipelines/test_doctor.py works it out anew, from a
plain rendering of the equations that shares no code with this package."""
CONFIG: Final = VecaConfig(dim=48, layers=3, heads=3, cores=64)


def known_network() -> VecaEncoder:
    """On the CPU, in evaluation mode, with weights that are waves: no random generator has to stay as it is."""
    encoder = VecaEncoder(CONFIG).eval()
    with torch.no_grad():
        for k, (name, weight) in enumerate(encoder.named_parameters()):
            wave = torch.sin(torch.arange(weight.numel(), dtype=torch.float64) * 1.7 + k + 1).view(weight.shape)
            width = weight[0].numel() if weight.ndim > 1 else 1
            scale = 1.0 if name.startswith("bank.") else width**-0.5 if weight.ndim > 1 else 0.1
            weight.copy_(wave * scale + ("norm" in name and name.endswith("weight")))
    return encoder


def known_picture() -> Tensor:
    """(1, 3, 96, 64) floats, 6 x 4 patches."""
    numbers = torch.arange(3 * 96 * 64, dtype=torch.float64)
    return torch.sin(numbers * 0.37 + numbers.sqrt()).view(1, 3, 96, 64).float()


def sample(tokens: Tokens) -> tuple[float, ...]:
    """Eight numbers of a result: of the first core and of the last patch. Each depends on every weight."""
    first, last = tokens.cores[0, 0, :4], tokens.patches[0, -1, -4:]
    return tuple(torch.cat([first, last]).tolist())
