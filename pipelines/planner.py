"""What is chosen for one image, and why: cores, window, batch, chunk and block under bounds of memory and time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from pipelines.carry import carried
from pipelines.device import choose_device, format_bytes, free_memory, resident
from pipelines.errors import RequestError
from pipelines.inference import fast_precision, windows_ahead
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
    host: int = 0
    """Bytes expected of this machine's memory, where another device is bound."""
    host_memory: int = 0
    """Bytes that are free to take of it."""

    @property
    def fits(self) -> bool:
        """Whether memory suffices."""
        return self.predicted <= self.memory and self.host <= self.host_memory


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading an image takes."""

    itemsize: int = 1
    """Bytes of a number of a pixel."""
    beyond: int = 0
    """Bytes that the reader needs, beyond what every plan allows it (`READING`)."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the network was measured to be, and how much of an image it will see."""

    rate: float
    """Floating-point operations a second."""
    share: float = 1.0
    """Of the windows, those with data and tissue."""
    passes: int = 1
    """How often each of them is run."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user pins, None leaves the choice to the plan; and what comes with the image."""

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
    reading: Reading = Reading()


Planner = Callable[[NetworkSize, Size, int, int, Wishes], Plan]
"""`make_plan`, or what does the same elsewhere."""


def make_plan(network: NetworkSize, image: Size, full_cores: int, best_window: int, wishes: Wishes) -> Plan:
    """Full cores and the model's own window where they fit; then it gives up chunk, batch, block, cores, window.

    `full_cores` and `best_window` are the model's; `image` is the size of the grid that is predicted. Cores are given
    up only where that helps: they save memory worth speaking of (large banks, scores that are kept), or time is
    bounded; which ones, the order of `wishes.budgets` says. Raises RequestError for a window smaller than the patch, or
    where no plan keeps to memory and time, and says what would.
    """
    smallest = quickest = None
    for plan in candidates(network, image, full_cores, best_window, wishes):
        if plan.fits:
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
    what = f"the smallest plan (window {smallest.window} px, batch {smallest.batch})"
    if smallest.predicted <= smallest.memory:
        raise RequestError(
            f"{format_bytes(smallest.host_memory)} of this machine's memory is not enough: {what} needs "
            f"{format_bytes(smallest.host)} beside {smallest.device}; end other programs, or take a larger machine"
        )
    raise RequestError(
        f"{format_bytes(smallest.memory)} is not enough: {what} needs {format_bytes(smallest.predicted)}; "
        f"{_way_out(network, image, full_cores, best_window, wishes, smallest)}"
    )


def candidates(network: NetworkSize, image: Size, full_cores: int, best_window: int, wishes: Wishes) -> Iterator[Plan]:
    """All plans that the wishes allow, the best first, whether they fit or not."""
    device = choose_device(wishes.device)
    precision = str(fast_precision(device)).removeprefix("torch.")
    host_memory = resident() + int(SHARE * free_memory(torch.device("cpu")))
    memory = wishes.memory or (host_memory if device.type == "cpu" else int(SHARE * free_memory(device)))
    chunks = [default_chunk(device.type), default_chunk(device.type) // SMALLER_CHUNK]
    levers = list(itertools.product(BLOCKS, GPU_BATCHES if device.type != "cpu" else (1,), chunks))
    windows = [wishes.window] if wishes.window else overlapping(halvings(best_window, network.patch), wishes.overlap)
    for window in windows:
        overlap = check_overlap(window, network.patch, wishes.overlap)
        for cores in core_choices(network, image, window, wishes.cores or full_cores, wishes, device):
            for block, batch, chunk in levers:
                plan = Plan(
                    cores, window, overlap, batch, block, str(device), precision, memory, predicted=0, reason="",
                    chunk=chunk, host_memory=0 if device.type == "cpu" else host_memory,
                )  # fmt: skip
                plan = expected(plan, network, image, wishes.reading)
                if pace := wishes.pace:
                    run = operations(network, image, plan) * pace.share * pace.passes
                    plan = replace(plan, seconds=run / pace.rate)
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
    grid = Grid.over(image, window, check_overlap(window, network.patch, wishes.overlap), network.patch)
    around = host_bytes(network, grid, 1, BLOCKS[-1], wishes.reading)
    needs = {c: around + device_bytes(network, grid.window, 1, c, device) for c in (cores, *fewer)}
    return [cores, *(c for c in fewer if needs[c] <= WORTH * needs[cores])]


def expected(plan: Plan, network: NetworkSize, image: Size, reading: Reading) -> Plan:
    """The plan with the peak bytes that it is expected to need: on a CPU of the whole process, with what it holds
    already; elsewhere of the device's memory and of this machine's.
    """
    device, grid = torch.device(plan.device), Grid.over(image, plan.window, plan.overlap, network.patch)
    computing = device_bytes(network, grid.window, plan.batch, plan.cores, device, plan.chunk or None)
    host = resident() + host_bytes(network, grid, plan.batch, plan.block, reading)
    if device.type == "cpu":
        return replace(plan, predicted=host + computing)
    # What comes back from the device, before it is stitched.
    host += plan.batch * network.classes * FLOAT * grid.window.pixels
    computing += network.weights
    # An Apple GPU has no memory of its own.
    return replace(plan, predicted=computing, host=host + computing if device.type == "mps" else host)


def device_bytes(
    network: NetworkSize, window: Size, batch: int, cores: int, device: torch.device, chunk: int | None = None
) -> int:
    """Peak bytes of the network where it runs, beside its weights as they were loaded."""
    forward = pass_bytes(network, window.height, window.width, batch, cores, device, chunk)
    return network.prepared(fast_precision(device).itemsize) + forward


def host_bytes(network: NetworkSize, grid: Grid, batch: int, block: int, reading: Reading) -> int:
    """Peak bytes around the network: decoded tiles, windows on their way to it, stitching, and what is carried from one
    block to the next.
    """
    window, numbers = grid.window.pixels, network.bands * reading.itemsize
    # A batch is put together in one copy, and laid out as the network reads it in another.
    pixels = window * (windows_ahead(batch) * (numbers + 1) + 2 * batch * numbers)
    answers = (batch - 1) * network.classes * FLOAT * window
    stitch = stitch_bytes(network.classes, min(block, grid.size.height) * min(block, grid.size.width), window)
    return READING + reading.beyond + pixels + answers + stitch + carried(grid, block, network.classes)


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
    grid = Grid.over(image, plan.window, plan.overlap, network.patch)
    return len(grid) * forward_operations(network, grid.window.height, grid.window.width, plan.cores)


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


def overlapping(windows: Sequence[int], overlap: int | None) -> list[int]:
    """The windows that a wished overlap leaves: those that are twice as large or larger, and the first at any rate."""
    return [window for window in windows if window == windows[0] or overlap is None or 2 * overlap <= window]


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
