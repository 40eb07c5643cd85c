"""How the encoder's work and time grow with patches and cores. The work is a law and is asserted; the time is printed.

.venv/bin/python -m pytest tests/benchmarks/test_encoder_work.py -s
"""

from __future__ import annotations

import sys
import time

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


def seconds(encoder: VecaEncoder, side: int, cores: int, repeats: int = 3) -> float:
    """The fastest of some runs."""
    image = torch.randn(1, 3, side, side)
    best = float("inf")
    with torch.inference_mode():
        encoder(image, cores)
        for _ in range(repeats):
            started = time.perf_counter()
            encoder(image, cores)
            best = min(best, time.perf_counter() - started)
    return best


@pytest.mark.parametrize("cores", BUDGETS)
def test_work_is_linear_in_patches(cores: int) -> None:
    encoder = VecaEncoder(preset("tiny")).eval()
    small, middle, large = (operations(encoder, side, cores) for side in SIDES)
    # 256, 1,024 and 4,096 patches: the cores' own share is the same each time, the rest grows by the patch.
    assert large - middle == 4 * (middle - small)


def test_print_time_against_patches_and_cores(capsys: pytest.CaptureFixture[str]) -> None:
    encoder = VecaEncoder(preset("tiny")).eval()
    with capsys.disabled():
        for side in SIDES:
            times = {cores: seconds(encoder, side, cores) for cores in BUDGETS}
            cells = "  ".join(f"C {cores} {t * 1e3:7.1f} ms ({t / times[64]:.2f})" for cores, t in times.items())
            sys.stdout.write(f"\nN {(side // 16) ** 2:6d}  {cells}")
        sys.stdout.write("\n")
