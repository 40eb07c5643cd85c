"""What is chosen for one image: cores, window, batch and block under a memory bound, and why."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import torch

from pipelines.carry import LIMIT as CARRY
from pipelines.errors import RequestError
from pipelines.inference import fast_precision
from tiling import Size
from veca_core.memory import FLOAT, NetworkSize, forward_bytes, stitch_bytes

SHARE: Final = 0.8
"""Of the memory that is free, what a run takes unless told otherwise."""
CHUNK: Final = 512
"""Side of a Zarr chunk in pixels; blocks are whole numbers of them."""
BLOCKS: Final = (2048, 1024, 512)
SLACK: Final = 1.1
"""Allowance over the counted bytes for what the allocator keeps."""
READING: Final = 160 * 2**20
"""Bytes for decoded tiles, the tissue search and the block that is being written."""
GPU_BATCHES: Final = (16, 8, 4, 2, 1)
UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, slots=True)
class Plan:
    """How one image will be run."""

    cores: int
    window: int
    overlap: int
    batch: int
    block: int
    device: str
    precision: str
    memory: int
    """Bytes allowed."""
    predicted: int
    """Bytes expected at the peak, on the device that is bound."""
    reason: str


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user pins; None leaves the choice to the plan."""

    cores: int | None = None
    window: int | None = None
    overlap: int | None = None
    memory: int | None = None
    device: str = "auto"


def make_plan(network: NetworkSize, image: Size, full_cores: int, best_window: int, wishes: Wishes) -> Plan:
    """Full cores and the model's own window where they fit; then it gives up batch, then block, then window.

    `full_cores` and `best_window` are the model's; `image` is the size of the grid that is predicted. Raises
    RequestError for a window smaller than the patch, or where even the smallest plan does not fit.
    """
    device = choose_device(wishes.device)
    memory = wishes.memory or int(SHARE * free_memory(device))
    cores = wishes.cores or full_cores
    windows = [wishes.window] if wishes.window else _halvings(best_window, network.patch)
    for window in windows:
        if window < network.patch:
            raise RequestError(f"a window of {window} px is smaller than the model's patch of {network.patch} px")
        if wishes.overlap is not None and not 0 <= wishes.overlap <= window // 2:
            raise RequestError(f"the overlap must be 0 to half the window of {window} px, got {wishes.overlap}")
        for block in BLOCKS:
            for batch in GPU_BATCHES if device.type == "cuda" else (1,):
                predicted = predict(network, image, window, batch, cores, block, device)
                if predicted <= memory:
                    overlap = window // 8 if wishes.overlap is None else wishes.overlap
                    reason = _reason(cores == full_cores, window == best_window, block == BLOCKS[0])
                    precision = str(fast_precision(device)).removeprefix("torch.")
                    return Plan(cores, window, overlap, batch, block, str(device), precision, memory, predicted, reason)
    least = predict(network, image, windows[-1], 1, cores, BLOCKS[-1], device)
    raise RequestError(
        f"{format_bytes(memory)} is not enough: the smallest plan (window {windows[-1]} px, batch 1) needs "
        f"{format_bytes(least)}; allow more with --memory, or a smaller --window"
    )


def predict(
    network: NetworkSize, image: Size, window: int, batch: int, cores: int, block: int, device: torch.device
) -> int:
    """Expected peak bytes: on a GPU of the device's memory, on a CPU of the whole process."""
    height, width = (min(window, _round_up(side, network.patch)) for side in (image.height, image.width))
    forward = int(SLACK * forward_bytes(network, height, width, batch, cores))
    if device.type != "cpu":
        return network.weights + forward
    stitch = stitch_bytes(network.classes, min(block, image.height) * min(block, image.width), height * width)
    # Windows that reach into the next row of blocks wait for it, all along the image.
    waiting = network.classes * FLOAT * height * image.width if max(image.height, image.width) > block else 0
    return resident() + READING + forward + stitch + min(CARRY, waiting)


def choose_device(name: str) -> torch.device:
    """'auto' takes a CUDA device where there is one; raises RequestError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise RequestError(f"there is no device {name!r}; write auto, cpu, cuda or cuda:1")
    if name.startswith("cuda"):
        index = int(name.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            raise RequestError(f"{name} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device; on a CPU the less of what the machine and its control group leave."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(psutil.virtual_memory().available, _cgroup_free())


def parse_bytes(text: str) -> int:
    """Reads '6GiB', '800M' or '1.5 GB' (all powers of 1024); raises RequestError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    value = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if value <= 0:
        raise RequestError(f"cannot read {text!r} as an amount of memory; write a number and a unit, like 6GiB")
    return value


def format_bytes(count: int) -> str:
    """Bytes for people: '1.5 GiB'."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def describe(plan: Plan) -> str:
    """The plan in one line, for people."""
    return (
        f"plan: {plan.cores} cores, window {plan.window} px, overlap {plan.overlap} px, batch {plan.batch}, "
        f"{plan.device} {plan.precision}; expects {format_bytes(plan.predicted)} of {format_bytes(plan.memory)} "
        f"({plan.reason})"
    )


def resident() -> int:
    """Bytes that this process holds now, its libraries and the loaded model among them."""
    return int(psutil.Process().memory_info().rss)


def _cgroup_free() -> int:
    """What the control group of this process still allows, version 2 then 1; unlimited where there is none."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        if os.access(limit, os.R_OK) and os.access(used, os.R_OK):
            allowed = Path(limit).read_text(encoding="ascii").strip()
            if allowed.isdigit():
                return max(0, int(allowed) - int(Path(used).read_text(encoding="ascii")))
    return 2**63


def _halvings(window: int, patch: int) -> list[int]:
    """The window, and halves of it down to 128 px or the patch, all multiples of the patch."""
    sides = [_round_up(window, patch)]
    while sides[-1] // 2 >= max(128, patch):
        sides.append(_round_up(sides[-1] // 2, patch))
    return sides


def _round_up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


def _reason(all_cores: bool, best_window: bool, largest_block: bool) -> str:
    if all_cores and best_window and largest_block:
        return "everything fits"
    given_up = [
        *([] if all_cores else ["fewer cores, as asked"]),
        *([] if best_window else ["another window than the model's own"]),
        *([] if largest_block else ["smaller blocks"]),
    ]
    return ", ".join(given_up)
