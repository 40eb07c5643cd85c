"""What is chosen for one image: cores, window, batch and block under a memory bound, and why."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psutil
import torch

from pipelines.carry import LIMIT as CARRY
from pipelines.errors import RequestError
from pipelines.inference import fast_precision
from tiling import Grid, Size
from veca_core.memory import FLOAT, NetworkSize, forward_bytes, forward_operations, stitch_bytes
from veca_core.streaming import default_chunk, keeps_scores

SHARE: Final = 0.8
"""Of the memory that is free, what a run takes unless told otherwise."""
CHUNK: Final = 512
"""Side of a Zarr chunk in pixels; blocks are whole numbers of them."""
BLOCKS: Final = (2048, 1024, 512)
SLACK: Final = 1.1
"""Allowance over the counted bytes for what the allocator keeps."""
WORTH: Final = 0.9
"""Fewer cores are a choice where they need at most this share of the memory."""
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
    budgets: tuple[int, ...] = ()
    """Numbers of cores that may be chosen instead of all, the most accurate first."""


Planner = Callable[[NetworkSize, Size, int, int, Wishes], Plan]
"""`make_plan`, or what does the same elsewhere."""


def make_plan(network: NetworkSize, image: Size, full_cores: int, best_window: int, wishes: Wishes) -> Plan:
    """Full cores and the model's own window where they fit; then it gives up batch, then block, then window.

    `full_cores` and `best_window` are the model's; `image` is the size of the grid that is predicted. Cores are given
    up, before the window is, where that saves memory worth speaking of: with large banks, or where attention keeps its
    scores; which ones, the order of `wishes.budgets` says. Raises RequestError for a window smaller than the patch, or
    where even the smallest plan does not fit.
    """
    device = choose_device(wishes.device)
    held = resident() if device.type == "cpu" else 0
    memory = wishes.memory or held + int(SHARE * free_memory(device))
    plan = None
    for window in [wishes.window] if wishes.window else halvings(best_window, network.patch):
        overlap = check_overlap(window, network.patch, wishes.overlap)
        for cores in core_choices(network, image, window, wishes.cores or full_cores, wishes, device):
            for block in BLOCKS:
                for batch in GPU_BATCHES if device.type != "cpu" else (1,):
                    plan = Plan(
                        cores=cores,
                        window=window,
                        overlap=overlap,
                        batch=batch,
                        block=block,
                        device=str(device),
                        precision=str(fast_precision(device)).removeprefix("torch."),
                        memory=memory,
                        predicted=held + predict(network, image, window, batch, cores, block, device),
                        reason=_reason(cores, full_cores, wishes.cores, window == best_window, block == BLOCKS[0]),
                    )
                    if plan.predicted <= memory:
                        return plan
    assert plan is not None, "there is always a smallest window"
    raise RequestError(
        f"{format_bytes(memory)} is not enough: the smallest plan (window {plan.window} px, batch {plan.batch}) needs "
        f"{format_bytes(plan.predicted)}; {_way_out(network, image, full_cores, best_window, wishes, plan)}"
    )


def core_choices(
    network: NetworkSize, image: Size, window: int, cores: int, wishes: Wishes, device: torch.device
) -> list[int]:
    """The wished number of cores, then fewer, in the order of the budgets, that need a tenth less memory or better."""
    need = predict(network, image, window, 1, cores, BLOCKS[-1], device)
    fewer = [] if wishes.cores else [budget for budget in wishes.budgets if budget < cores]
    helps = [c for c in fewer if predict(network, image, window, 1, c, BLOCKS[-1], device) <= WORTH * need]
    return [cores, *helps]


def predict(
    network: NetworkSize, image: Size, window: int, batch: int, cores: int, block: int, device: torch.device
) -> int:
    """Expected peak bytes: on a GPU of the device's memory, on a CPU beyond what the process holds already."""
    height, width = _window_size(network, image, window)
    forward = pass_bytes(network, height, width, batch, cores, device)
    weights = network.prepared(fast_precision(device).itemsize)
    if device.type != "cpu":
        return network.weights + weights + forward
    stitch = stitch_bytes(network.classes, min(block, image.height) * min(block, image.width), height * width)
    # Windows that reach into the next row of blocks wait for it, all along the image.
    waiting = network.classes * FLOAT * height * image.width if max(image.height, image.width) > block else 0
    return READING + weights + forward + stitch + min(CARRY, waiting)


def pass_bytes(network: NetworkSize, height: int, width: int, batch: int, cores: int, device: torch.device) -> int:
    """Expected peak bytes of one pass over `batch` windows of height x width pixels, beyond weights."""
    kept = keeps_scores(device.type, cores)
    attention = "stored" if kept else {"cpu": "fused on a CPU", "cuda": "fused"}.get(device.type, "plain")
    chunk, dtype = default_chunk(device.type), fast_precision(device).itemsize
    return int(SLACK * forward_bytes(network, height, width, batch, cores, chunk, dtype, attention))


def operations(network: NetworkSize, image: Size, plan: Plan) -> float:
    """Floating-point operations of a whole image under a plan: what its time is in proportion to."""
    height, width = _window_size(network, image, plan.window)
    windows = len(Grid.over(image, plan.window, plan.overlap, network.patch))
    return windows * forward_operations(network, height, width, plan.cores)


@dataclass(frozen=True, slots=True)
class Choice:
    """One row of what could be chosen."""

    plan: Plan
    time: float
    """In proportion to the chosen plan's."""
    mean_iou: float | None
    """What the model's card records for this number of cores."""
    chosen: bool

    @property
    def fits(self) -> bool:
        return self.plan.predicted <= self.plan.memory


def choices(
    network: NetworkSize, image: Size, budgets: Sequence[int], scores: Mapping[int, float], chosen: Plan
) -> list[Choice]:
    """The chosen plan among others: the smallest, a middle and the full budget, over the window and its halves."""
    device = torch.device(chosen.device)
    held = resident() if device.type == "cpu" else 0
    cores = sorted({budgets[0], budgets[len(budgets) // 2], budgets[-1], chosen.cores}, reverse=True)
    rows = []
    for window in halvings(chosen.window, network.patch):
        for budget in cores:
            overlap = chosen.overlap if window == chosen.window else check_overlap(window, network.patch, None)
            need = held + predict(network, image, window, chosen.batch, budget, chosen.block, device)
            plan = replace(chosen, cores=budget, window=window, overlap=overlap, predicted=need)
            share = operations(network, image, plan) / operations(network, image, chosen)
            is_chosen = (budget, window) == (chosen.cores, chosen.window)
            rows.append(Choice(plan, share, scores.get(budget), is_chosen))
    return rows


def table(rows: Sequence[Choice]) -> list[str]:
    """Choices as lines of text; an arrow marks the chosen one."""
    header = ("", "cores", "window", "batch", "block", "peak", "time", "mean IoU", "")
    cells = [
        (
            "->" if row.chosen else "",
            str(row.plan.cores),
            f"{row.plan.window} px",
            str(row.plan.batch),
            f"{row.plan.block} px",
            format_bytes(row.plan.predicted),
            f"x {row.time:.2f}",
            "not recorded" if row.mean_iou is None else f"{row.mean_iou:.3f}",
            "" if row.fits else "does not fit",
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in (header, *cells)) for i in range(len(header))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (header, *cells)
    ]


def choose_device(name: str) -> torch.device:
    """'auto' takes a CUDA device where there is one; raises RequestError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise RequestError(f"there is no device {name!r}; write auto, cpu, cuda or cuda:1, or mps")
    if name == "mps" and not torch.backends.mps.is_available():
        raise RequestError("mps was asked for, but torch sees no Apple GPU here; write auto or cpu")
    if name.startswith("cuda"):
        index = int(name.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            raise RequestError(f"{name} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device; on a CPU the less of what the machine and its control group leave."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, and unused
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return min(psutil.virtual_memory().available, _cgroup_free())


def parse_bytes(text: str) -> int:
    """Reads '6GiB', '800M' or '1.5 GB' (all powers of 1024); raises RequestError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    amount = float(match[1]) * UNITS[match[2].upper()] if match else 0.0
    if not 1 <= amount < 2**63:
        raise RequestError(f"cannot read {text!r} as an amount of memory; write a number and a unit, like 6GiB")
    return int(amount)


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


@functools.cache
def resident() -> int:
    """Bytes that this process held when it was first asked, its libraries and the loaded model among them.

    Asked once: what an earlier image left behind is used again, and must not make the next one's plan smaller.
    """
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
                held = int(Path(used).read_text(encoding="ascii")) - _page_cache(Path(used).with_name("memory.stat"))
                return max(0, int(allowed) - held)
    return 2**63


def _page_cache(stat: Path) -> int:
    """Bytes of files that the kernel keeps and gives back when they are needed: counted as used, but free."""
    if not os.access(stat, os.R_OK):
        return 0
    rows = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
    return int(rows.get("total_inactive_file", rows.get("inactive_file", 0)))


def _window_size(network: NetworkSize, image: Size, window: int) -> tuple[int, int]:
    """Height and width of the windows: no larger than the image needs."""
    return min(window, _round_up(image.height, network.patch)), min(window, _round_up(image.width, network.patch))


def check_overlap(window: int, patch: int, wished: int | None) -> int:
    """An eighth of the window unless wished otherwise; raises RequestError for what no grid can have."""
    if window < patch:
        raise RequestError(f"a window of {window} px is smaller than the model's patch of {patch} px")
    if wished is not None and not 0 <= wished <= window // 2:
        raise RequestError(f"the overlap must be 0 to half the window of {window} px, got {wished} px")
    return window // 8 if wished is None else wished


def halvings(window: int, patch: int) -> list[int]:
    """The window, and halves of it down to 128 px or the patch, all multiples of the patch."""
    sides = [_round_up(window, patch)]
    while sides[-1] // 2 >= max(128, patch):
        sides.append(_round_up(sides[-1] // 2, patch))
    return sides


def _round_up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


def _reason(cores: int, full_cores: int, pinned: int | None, best_window: bool, largest_block: bool) -> str:
    if cores == full_cores and best_window and largest_block:
        return "everything fits"
    given_up = [
        *(
            []
            if cores == full_cores
            else ["fewer cores, as asked" if pinned else "fewer cores, which saves memory here"]
        ),
        *([] if best_window else ["another window than the model's own"]),
        *([] if largest_block else ["smaller blocks"]),
    ]
    return ", ".join(given_up)


def _way_out(
    network: NetworkSize, image: Size, full_cores: int, best_window: int, wishes: Wishes, smallest: Plan
) -> str:
    """What would fit: another window where one was pinned, or else more memory."""
    more = f"allow more with --memory {-(-smallest.predicted // 2**20)}MiB"
    if wishes.window is None:
        return more
    try:
        fitting = make_plan(network, image, full_cores, best_window, replace(wishes, window=None, overlap=None))
    except RequestError:
        return f"{more}; no smaller --window fits either"
    return f"{more}, or --window {fitting.window}"
