"""How the encoder's work grows with patches: a law, which its time follows (`encoder.py` measures that)."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from veca_core import VecaEncoder, preset

SIDES = (256, 512, 1024)
BUDGETS = (8, 32, 64)


def operations(encoder: VecaEncoder, side: int, cores: int) -> int:
    """Floating-point operations of one pass over a square image of `side` pixels."""
    with FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, 3, side, side), cores)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("cores", BUDGETS)
def test_work_is_linear_in_patches(cores: int) -> None:
    encoder = VecaEncoder(preset("tiny")).eval()
    small, middle, large = (operations(encoder, side, cores) for side in SIDES)
    # 256, 1,024 and 4,096 patches: the cores' own share is the same each time, the rest grows by the patch.
    assert large - middle == 4 * (middle - small)
