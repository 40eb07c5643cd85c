"""Convolutions with all channels of a pixel together, as `load_model` leaves them, against planes. Prints Markdown.

python tests/benchmarks/layout.py --model aerial-landcover --side 512 1024
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import psutil
import torch

from pipelines.inference import autocast, fast_precision
from veca_core import load_model

sys.path.append(str(Path(__file__).parents[1] / "veca_core"))
from apart import apart

LAYOUTS = {"planes": torch.contiguous_format, "channels together": torch.channels_last}
CPU = torch.device("cpu")


def measure(model: str, side: int, layout: str, passes: int) -> tuple[float, int]:
    """Seconds of the fastest pass, and bytes at the peak of all of them beyond what was held before."""
    network = load_model(model).network.to(memory_format=LAYOUTS[layout])
    pixels = torch.ones(1, network.encoder.config.in_channels, side, side, dtype=torch.uint8)
    fastest = float("inf")
    with torch.inference_mode(), autocast(CPU, fast_precision(CPU)):
        network(pixels[..., :64, :64])  # loads the library's code
        before = psutil.Process().memory_info().rss
        for _ in range(passes):
            started = time.perf_counter()
            network(pixels).softmax(dim=1)
            fastest = min(fastest, time.perf_counter() - started)
    return fastest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="aerial-landcover")
    parser.add_argument("--side", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--passes", type=int, default=6)
    given = parser.parse_args()
    torch.set_num_threads(1)  # before a copy is made: threads are not copied
    sys.stdout.write("| window | layout | time | peak |\n|---|---|---|---|\n")
    for side in given.side:
        for layout in LAYOUTS:
            seconds, peak = apart(measure, given.model, side, layout, given.passes)
            sys.stdout.write(f"| {side} px | {layout} | {seconds * 1000:.0f} ms | {peak / 2**20:.0f} MiB |\n")


if __name__ == "__main__":
    main()
