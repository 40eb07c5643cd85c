"""The encoder's benchmark runs, at sizes that take no time, and compares what computes the same."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import encoder as benchmark
import pytest
import torch
from plain import PlainVeca
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from veca_core import VecaEncoder, preset

QUICK = benchmark.Setting(
    name="tiny", sides=(64, 128), growth=(64, 128), timm_sides=(64,), peak_side=512, product=64, turns=1
)


@pytest.mark.parametrize("name", benchmark.SECTIONS)
def test_each_section_gives_a_table_of_figures(name: str) -> None:
    header, *rows = benchmark.SECTIONS[name](QUICK)
    assert rows
    assert all(len(row) == len(header) for row in rows)
    figures = [float(word) for row in rows for cell in row for word in cell.replace(",", "").rstrip("%").split()[:1]
               if word[0].isdigit()]  # fmt: skip
    assert all(math.isfinite(figure) for figure in figures)
    assert benchmark.markdown([header, *rows]).count("\n") == len(rows) + 1


def test_the_commands_beside_the_figures_are_understood_and_name_each_section() -> None:
    text = (Path(__file__).parents[2] / "docs" / "speed.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    python tests/benchmarks/encoder.py (.*)$", text, re.MULTILINE)
    shown = [benchmark.arguments().parse_args(command.split()) for command in commands]
    assert {name for given in shown[1:] for name in given.only} == set(benchmark.SECTIONS)


@pytest.mark.parametrize("cores", [8, 64])
def test_the_plain_rendering_computes_what_ours_does(cores: int) -> None:
    torch.manual_seed(0)
    ours = VecaEncoder(preset("tiny")).eval()
    with torch.no_grad():
        ours.move_rates.fill_(0.3)
        pixels = benchmark.picture(128)[..., :96]
        bank, patches = PlainVeca(ours).eval()(benchmark.normalised(pixels), cores)
        tokens = ours(pixels, cores, scale=benchmark.SCALE)
    torch.testing.assert_close(tokens.patches, patches, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tokens.cores, bank, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cores", [8, 64])
def test_operations_are_those_that_torch_counts(cores: int) -> None:
    network = VecaEncoder(preset("tiny")).eval()
    # Of fused attention on a CPU nothing is counted.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 256, 256), cores)
    moves = 2 * (network.config.layers - 1) * cores * network.config.dim * 2
    assert counter.get_total_flops() == benchmark.operations(network, 256, cores) + moves


@pytest.mark.skipif(sys.platform != "linux", reason="resident sizes are counted as Linux does")
def test_predicted_and_measured_memory_are_printed_for_a_grid_of_passes() -> None:
    program = Path(__file__).parent / "memory.py"
    command = [sys.executable, "-W", "ignore", str(program), "--side", "64", "--only", "encoder"]
    done = subprocess.run(command, cwd=program.parents[2], capture_output=True, text=True, check=True)
    rows = [line for line in done.stdout.splitlines() if line.startswith("| 64 |")]
    assert len(rows) == 24
    assert all(float(row.split("|")[-2]) > 0 for row in rows)
