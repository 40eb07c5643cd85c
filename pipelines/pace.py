"""How fast a network is on a device, measured on a window, and how much of an image it sees: what time is told by."""

from __future__ import annotations

import re
import time
from typing import Final

import torch

from pipelines.errors import RequestError
from pipelines.inference import autocast, fast_precision
from pipelines.planner import Pace, check_overlap
from tiling import Grid, View
from tiling.tissue import tissue_mask
from veca_core import Segmenter
from veca_core.memory import forward_operations
from veca_core.model import network_size

UNITS: Final = {"": 1, "s": 1, "min": 60, "h": 3600}
TURNS: Final = 2
"""Passes that are timed, the fastest of which counts; one before them does not."""
LARGEST: Final = 512
"""Side of the window that is timed, at most: time grows with pixels, and a bound must not be spent on measuring."""


def measure_pace(network: Segmenter, view: View, window: int, device: torch.device, tissue: bool) -> Pace:
    """Runs a window without content, and counts the windows of `view` that have data (and `tissue`, if that counts)."""
    patch = network.encoder.config.patch
    grid = Grid.over(view.size, window, check_overlap(window, patch, None), patch)
    mask = tissue_mask(view) if tissue else None
    seen = sum(not view.blank(box) and (mask is None or mask.touches(box)) for box in grid)
    return Pace(measure_rate(network.to(device), min(window, LARGEST), device), max(seen, 1) / len(grid))


def measure_rate(network: Segmenter, side: int, device: torch.device) -> float:
    """Floating-point operations a second over windows of `side` pixels, with all cores."""
    config = network.encoder.config
    window = torch.zeros(1, config.in_channels, side, side, dtype=torch.uint8, device=device)
    best = float("inf")
    with torch.inference_mode(), autocast(device, fast_precision(device)):
        for turn in range(TURNS + 1):
            started = time.perf_counter()
            network(window).sum().item()  # waits for the device
            if turn:
                best = min(best, time.perf_counter() - started)
    return forward_operations(network_size(network), side, side, config.cores) / best


def parse_time(text: str) -> float:
    """Seconds of '90s', '10min', '1.5h' or '90'; raises RequestError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|)\s*", text, re.IGNORECASE)
    seconds = float(match[1]) * UNITS[match[2].lower()] if match else 0.0
    if not 0 < seconds < 1e9:
        raise RequestError(f"cannot read {text!r} as a time; write a number and a unit, like 90s, 10min or 2h")
    return seconds
