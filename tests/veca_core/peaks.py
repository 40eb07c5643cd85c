"""Peak memory of passes of the encoder, each in a process of its own. Run as a program with the passes as JSON."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from apart import apart

from veca_core import VecaEncoder, preset
from veca_core.prepared import prepared

ROOT = Path(__file__).parents[2]
Pass = tuple[int, str, int, int, int]
"""Side in pixels, number type, cores, batch, chunk."""


def measured_peaks(passes: Sequence[Pass]) -> list[int]:
    """Bytes at the peak beyond images and weights (preset small, one layer), for each pass."""
    command = [sys.executable, "-W", "ignore", __file__, json.dumps(passes)]
    # A cluster that ran in this process left its workers' settings of malloc behind.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment = {**inherited, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


def run(side: int, dtype: str, cores: int, batch: int, chunk: int) -> int:
    encoder = VecaEncoder(preset("small", layers=1, cores=512)).eval()
    images = torch.ones(batch, 3, side, side, dtype=torch.uint8)
    scale = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        prepared(encoder)
        small = torch.ones(1, 3, 64, 64, dtype=torch.uint8)
        encoder(small, cores, scale=scale, skips=False)  # loads the library's code
        before = psutil.Process().memory_info().rss
        for _ in range(3):  # a later pass finds what the one before left on the heap
            encoder(images, cores, chunk=chunk, scale=scale, skips=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in json.loads(sys.argv[1]):
        sys.stdout.write(f"{apart(run, *line)}\n")
