"""Predicted memory against what a process really used, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import LITE, card, network
from peaks import Pass, measured_peaks

from pipelines.inference import fast_precision
from veca_core import preset
from veca_core.heap import LARGE
from veca_core.memory import RESIDENT, encoder_bytes, forward_bytes, stitch_bytes
from veca_core.model import network_size
from veca_core.streaming import keeps_scores

ROOT = Path(__file__).parents[2]
PASSES = [("patch", "linear", "small", 1024), ("patch", "unet", "tiny", 1024), (LITE, "unet", "tiny", 512),
          (LITE, "unet", "tiny", 1024)]  # fmt: skip
READINGS = 3
MEASURE = """
import json, resource, sys
import torch
sys.path.append("tests/veca_core")
from apart import apart
from veca_core import build, preset
from veca_core.card import Architecture, Bands
from veca_core.memory import forward_bytes
from veca_core.model import network_size

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def run(stem, head, name, side):
    fields = {key: getattr(preset(name), key) for key in preset(name).__dataclass_fields__}
    bands = Bands(names=("r", "g", "b"), mean=(0, 0, 0), std=(1, 1, 1))
    model = build(Architecture(encoder=fields, stem=stem, head=head), bands, 5).eval()
    model = model.to(memory_format=torch.channels_last)  # as `load_model` does
    with torch.inference_mode():
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
        before = peak()
        for _ in range(3):  # a later pass finds what the one before left on the heap
            model(torch.zeros(1, 3, side, side, dtype=torch.uint8)).softmax(dim=1)
    return before, peak(), forward_bytes(network_size(model), side, side, 1, 64)

torch.set_num_threads(1)
for line in json.loads(sys.argv[1]):
    print(json.dumps(apart(run, *line)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork: processes cannot share their imports here")
def test_the_predicted_peak_of_a_process_is_the_measured_one() -> None:
    """Resident sizes of whole processes, the median of some; a pass alone, too, where it is most of what a process
    takes beside torch itself."""
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, json.dumps(PASSES * READINGS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    figures = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(figures) == len(PASSES) * READINGS
    for i, (stem, head, name, side) in enumerate(PASSES):
        before, peak, passing = sorted(figures[i :: len(PASSES)], key=lambda figure: figure[1] - figure[0])[1]
        measured, predicted = peak - before, passing + RESIDENT
        said = f"{stem} {head} {name} at {side} px: measured {measured >> 20} MiB, predicted {predicted >> 20} MiB"
        sys.stdout.write(said + f" beyond {before >> 20} MiB\n")
        assert 0.95 * peak <= before + predicted <= 1.15 * peak, said
        assert 0.75 * measured <= predicted <= 1.45 * measured, said


PEAKS: list[Pass] = [
    (2048, "float32", 64, 1, 2048),
    (3072, "float32", 8, 1, 2048),
    (2048, "float32", 264, 2, 2048),
    (4096, str(fast_precision(torch.device("cpu"))).removeprefix("torch."), 64, 1, 2048),
]


@pytest.mark.skipif(sys.platform != "linux", reason="resident sizes are counted as Linux does")
def test_the_encoder_s_predicted_peak_is_the_measured_one_and_within_its_promise() -> None:
    """The median of three readings, which differ by what happens to lie on the heap: about one block of its largest."""
    config = preset("small")
    peaks = [sorted(readings)[1] for readings in zip(*(measured_peaks(PEAKS) for _ in range(3)), strict=True)]
    for (side, dtype, cores, batch, chunk), measured in zip(PEAKS, peaks, strict=True):
        tokens, number = (side // 16) ** 2, 4 if dtype == "float32" else 2
        attention = "stored" if keeps_scores("cpu", cores) else "fused on a CPU"
        predicted = RESIDENT + encoder_bytes(
            tokens, config.dim, config.hidden, config.heads, cores, batch, chunk, number, attention, values=768
        )
        said = (
            f"{side} px, {dtype}, {cores} cores, batch {batch}: {measured >> 20} MiB, predicted {predicted >> 20} MiB"
        )
        sys.stdout.write(said + "\n")
        assert 0.95 * measured - LARGE <= predicted <= 1.15 * measured + LARGE, said
        assert tokens < 65536 or measured <= 2.5 * tokens * config.dim * 4, said


def test_the_prediction_grows_with_everything_that_costs_memory() -> None:
    size = network_size(network(card(LITE, "unet")))
    least = forward_bytes(size, 256, 256, 1, 8)
    assert forward_bytes(size, 512, 256, 1, 8) > 1.9 * least
    assert forward_bytes(size, 256, 512, 1, 8) == forward_bytes(size, 512, 256, 1, 8)
    assert 4 * least <= forward_bytes(size, 256, 256, 4, 8) < 5.5 * least, "small blocks stay on the heap"
    assert forward_bytes(size, 256, 256, 1, 24) >= least
    assert stitch_bytes(5, 1024**2, 512**2) > stitch_bytes(5, 512**2, 512**2) > stitch_bytes(2, 512**2, 512**2)


@pytest.mark.parametrize(("stem", "head"), [("patch", "linear"), (LITE, "unet")])
def test_the_size_of_a_network_is_that_of_its_parts(stem: str, head: str) -> None:
    model = network(card(stem, head, bands=4, classes=6))
    size = network_size(model)
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert (size.dim, size.patch, size.bands, size.classes) == (48, 16, 4, 6)
    assert size.weights == 4 * size.parameters
    assert next(model.parameters()).device.type == "cpu", "measuring leaves the network where it is"
    assert network_size(model) is size, "it is measured once"
