"""Peak memory of passes of the network, measured where nothing else disturbs: on a CPU in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Final

import psutil
import torch

from pipelines.inference import autocast, fast_precision
from pipelines.peak import peak_memory
from veca_core import VecaEncoder, load_model, preset
from veca_core.prepared import prepared

SMALL: Final = 64
"""Side of the picture that makes a device load its libraries' code, before what is measured begins."""


PASSES: Final = 3
"""A later pass finds what the one before left on the heap."""


class GaugeError(Exception):
    """The measuring process failed; the message is the last line that it said."""


def gauge(device: torch.device, what: str, pixels: int, batch: int = 1) -> int:
    """Bytes at the peak of a pass over `batch` pictures of so many pixels a side, beyond pictures and weights.

    `what` is '' for an encoder of the preset `small`, of which one layer is enough, or a model's name or folder.
    """
    if device.type != "cpu":
        return measured(device, what, pixels, batch)
    code = "import sys; from pipelines.gauge import main; main(*sys.argv[1:])"
    command = [sys.executable, "-W", "ignore", "-c", code, what, str(pixels), str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GaugeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return int(done.stdout)


def main(what: str, pixels: str, batch: str) -> None:
    """What the process for a CPU runs."""
    sys.stdout.write(str(measured(torch.device("cpu"), what, int(pixels), int(batch))))


def measured(device: torch.device, what: str, pixels: int, batch: int) -> int:
    """`gauge`, in this process."""
    run, bands = _model(device, what) if what else _encoder(device)
    # Not a drawn picture: what drawing holds for a moment would be the peak.
    pictures = torch.full((batch, bands, pixels, pixels), 100, dtype=torch.uint8, device=device)
    with torch.inference_mode(), autocast(device, fast_precision(device)):
        run(pictures[..., :SMALL, :SMALL])
        before = _held(device)
        for _ in range(PASSES):
            run(pictures)
    return peak_memory(device) - before


def _held(device: torch.device) -> int:
    """Bytes that are held now, from where the peak is counted."""
    if device.type != "cuda":
        return int(psutil.Process().memory_info().rss)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return int(torch.cuda.memory_allocated(device))


def _encoder(device: torch.device) -> tuple[Callable[[torch.Tensor], object], int]:
    network = VecaEncoder(preset("small", layers=1)).eval().to(device)
    scale = torch.full((1, 3, 1, 1), 127.0, device=device), torch.full((1, 3, 1, 1), 60.0, device=device)
    prepared(network)
    return lambda pictures: network(pictures, scale=scale, skips=False), 3


def _model(device: torch.device, name: str) -> tuple[Callable[[torch.Tensor], object], int]:
    model = load_model(name, device)
    return lambda pictures: model.network(pictures).float().softmax(dim=1), len(model.card.bands.names)
