"""What is chosen for one image, and why: cores, window, batch, chunk and block under bounds of memory and time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import torch

from pipelines.carry import LIMIT as CARRY
from pipelines.device import choose_device, format_bytes, free_memory, resident
from pipelines.errors import RequestError
from pipelines.inference import fast_precision
from tiling import Grid, Size
from veca_core.memory import FLOAT, NetworkSize, forward_bytes, forward_operations, stitch_bytes
from veca_core.streaming import attention_kind, default_chunk

SHARE: Final = 0.8
"""Of the memory that is free, what a run takes unless told otherwise."""
CHUNK: Final = 512
"""Side of a Zarr chunk in pixels; blocks are whole numbers of them."""
BLOCKS: Final = (2048, 1024, 512)
WORTH: Final = 0.9
"""Fewer cores are a choice where they need at most this share of the memory."""
READING: Final = 120 * 2**20
"""Bytes for decoded tiles, the tissue search and the block that is being written."""
GPU_BATCHES: Final = (16, 8, 4, 2, 1)
SMALLER_CHUNK: Final = 4
"""What a chunk of tokens may be divided by, where memory is short."""


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
    chunk: int = 0
    """Tokens that the encoder works on at once; 0 in records that do not say it."""
    seconds: float | None = None
    """Expected for the network, where time is bounded."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the network was measured to be, and how much of an image it will see."""

    rate: float
    """Floating-point operations a second."""
    share: float = 1.0
    """Of the windows, those with data and tissue."""


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
    time: float | None = None
    """Seconds that the network may take for the image; needs a pace."""
    pace: Pace | None = None


Planner = Callable[[NetworkSize, Size, int, int, Wishes], Plan]
"""`make_plan`, or what does the same elsewhere."""


def make_plan(network: NetworkSize, image: Size, full_cores: int, best_window: int, wishes: Wishes) -> Plan:
    """Full cores and the model's own window where they fit; then it gives up chunk, batch, block, cores, window.

    `full_cores` and `best_window` are the model's; `image` is the size of the grid that is predicted. Cores are given
    up only where that helps: they save memory worth speaking of (large banks, scores that are kept), or time is
    bounded; which ones, the order of `wishes.budgets` says. Raises RequestError for a window smaller than the patch, or
    where no plan keeps to memory and time, and says what would.
    """
    device = choose_device(wishes.device)
    held = resident() if device.type == "cpu" else 0
    memory = wishes.memory or held + int(SHARE * free_memory(device))
    smallest = quickest = None
    for plan in candidates(network, image, full_cores, best_window, wishes, device, held, memory):
        if plan.predicted <= memory:
            if plan.seconds is None or wishes.time is None or plan.seconds <= wishes.time:
                return plan
            quickest = plan if quickest is None else min(quickest, plan, key=_seconds)
        smallest = plan
    if quickest:
        raise RequestError(
            f"{wishes.time:g} s are not enough: the quickest plan ({quickest.cores} cores, window {quickest.window} "
            f"px) takes about {_seconds(quickest):.0f} s; allow --time {math.ceil(1.1 * _seconds(quickest))}s"
            + (", or leave out --cores" if wishes.cores and quickest.cores > min(wishes.budgets, default=0) else "")
        )
    assert smallest is not None, "there is always a smallest window"
    raise RequestError(
        f"{format_bytes(memory)} is not enough: the smallest plan (window {smallest.window} px, batch "
        f"{smallest.batch}) needs {format_bytes(smallest.predicted)}; "
        f"{_way_out(network, image, full_cores, best_window, wishes, smallest)}"
    )


def candidates(
    network: NetworkSize,
    image: Size,
    full_cores: int,
    best_window: int,
    wishes: Wishes,
    device: torch.device,
    held: int,
    memory: int,
) -> Iterator[Plan]:
    """All plans that the wishes allow, the best first. `held` bytes are added to what each is expected to need."""
    precision = str(fast_precision(device)).removeprefix("torch.")
    chunks = [default_chunk(device.type), default_chunk(device.type) // SMALLER_CHUNK]
    levers = list(itertools.product(BLOCKS, GPU_BATCHES if device.type != "cpu" else (1,), chunks))
    for window in [wishes.window] if wishes.window else halvings(best_window, network.patch):
        overlap = check_overlap(window, network.patch, wishes.overlap)
        for cores in core_choices(network, image, window, wishes.cores or full_cores, wishes, device):
            for block, batch, chunk in levers:
                plan = Plan(
                    cores, window, overlap, batch, block, str(device), precision, memory,
                    predicted=held + predict(network, image, window, batch, cores, block, device, chunk),
                    reason="", chunk=chunk,
                )  # fmt: skip
                if wishes.pace:
                    expected = operations(network, image, plan) * wishes.pace.share / wishes.pace.rate
                    plan = replace(plan, seconds=expected)
                yield replace(plan, reason=_reason(plan, full_cores, best_window, wishes, chunks[0]))


def core_choices(
    network: NetworkSize, image: Size, window: int, cores: int, wishes: Wishes, device: torch.device
) -> list[int]:
    """The wished number of cores, then fewer, in the order of the budgets: those that need a tenth less memory or
    better, and all of them where time is bounded.
    """
    fewer = [] if wishes.cores else [budget for budget in wishes.budgets if budget < cores]
    if wishes.time is not None:
        return [cores, *fewer]
    need = predict(network, image, window, 1, cores, BLOCKS[-1], device)
    helps = [c for c in fewer if predict(network, image, window, 1, c, BLOCKS[-1], device) <= WORTH * need]
    return [cores, *helps]


def predict(
    network: NetworkSize,
    image: Size,
    window: int,
    batch: int,
    cores: int,
    block: int,
    device: torch.device,
    chunk: int | None = None,
) -> int:
    """Expected peak bytes: on a GPU of the device's memory, on a CPU beyond what the process holds already."""
    height, width = _window_size(network, image, window)
    forward = pass_bytes(network, height, width, batch, cores, device, chunk)
    weights = network.prepared(fast_precision(device).itemsize)
    if device.type != "cpu":
        return network.weights + weights + forward
    stitch = stitch_bytes(network.classes, min(block, image.height) * min(block, image.width), height * width)
    # Windows that reach into the next row of blocks wait for it, all along the image.
    waiting = network.classes * FLOAT * height * image.width if max(image.height, image.width) > block else 0
    return READING + weights + forward + stitch + min(CARRY, waiting)


def pass_bytes(
    network: NetworkSize,
    height: int,
    width: int,
    batch: int,
    cores: int,
    device: torch.device,
    chunk: int | None = None,
) -> int:
    """Expected peak bytes of one pass over `batch` windows of height x width pixels, beyond weights."""
    attention = attention_kind(device.type, cores)
    chunk, dtype = chunk or default_chunk(device.type), fast_precision(device).itemsize
    pixels = batch * height * width * network.bands * FLOAT
    return pixels + forward_bytes(network, height, width, batch, cores, chunk, dtype, attention)


def operations(network: NetworkSize, image: Size, plan: Plan) -> float:
    """Floating-point operations of a whole image under a plan: what its time is in proportion to."""
    height, width = _window_size(network, image, plan.window)
    windows = len(Grid.over(image, plan.window, plan.overlap, network.patch))
    return windows * forward_operations(network, height, width, plan.cores)


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


def _reason(plan: Plan, full_cores: int, best_window: int, wishes: Wishes, best_chunk: int) -> str:
    """What was given up, and for what."""
    given_up = []
    if plan.cores != full_cores:
        why = "as asked" if wishes.cores else "to be done in time" if wishes.time else "which saves memory here"
        given_up.append(f"fewer cores, {why}")
    if plan.window != best_window:
        given_up.append("another window than the model's own")
    if plan.block != BLOCKS[0]:
        given_up.append("smaller blocks")
    if plan.device != "cpu" and plan.batch != GPU_BATCHES[0]:
        given_up.append("smaller batches")
    if plan.chunk != best_chunk:
        given_up.append("smaller chunks")
    return ", ".join(given_up) or "everything fits"


def _seconds(plan: Plan) -> float:
    return plan.seconds or 0.0


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
