"""A plan among those that were not chosen: what other cores and windows would need, take and give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines.device import format_bytes
from pipelines.planner import Plan, Wishes, check_overlap, expected, halvings, operations, overlapping
from tiling import Size
from veca_core.memory import NetworkSize


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
        return self.plan.fits


def choices(
    network: NetworkSize,
    image: Size,
    budgets: Sequence[int],
    scores: Mapping[int, float],
    chosen: Plan,
    best_window: int,
    wishes: Wishes,
) -> list[Choice]:
    """The chosen plan among others: the smallest, a middle and the full budget, over the model's window and its halves,
    with the overlap that is wished.
    """
    cores = sorted({budgets[0], budgets[len(budgets) // 2], budgets[-1], chosen.cores}, reverse=True)
    windows = {chosen.window, *overlapping(halvings(best_window, network.patch), wishes.overlap)}
    rows = []
    for window in sorted(windows, reverse=True):
        for budget in cores:
            overlap = (
                chosen.overlap if window == chosen.window else check_overlap(window, network.patch, wishes.overlap)
            )
            plan = replace(chosen, cores=budget, window=window, overlap=overlap)
            plan = expected(plan, network, image, wishes.reading)
            share = operations(network, image, plan) / operations(network, image, chosen)
            is_chosen = (budget, window) == (chosen.cores, chosen.window)
            rows.append(Choice(plan, share, scores.get(budget), is_chosen))
    return rows


def table(rows: Sequence[Choice]) -> list[str]:
    """Choices as lines of text; an arrow marks the chosen one."""
    header = ("", "cores", "window", "batch", "chunk", "block", "peak", "time", "mean IoU", "")
    cells = [
        (
            "->" if row.chosen else "",
            str(row.plan.cores),
            f"{row.plan.window} px",
            str(row.plan.batch),
            str(row.plan.chunk),
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


def describe(plan: Plan) -> str:
    """The plan in one line, for people."""
    host = f"and {format_bytes(plan.host)} of this machine's memory " if plan.host else ""
    return (
        f"plan: {plan.cores} cores, window {plan.window} px, overlap {plan.overlap} px, batch {plan.batch}, "
        f"{plan.device} {plan.precision}; expects {format_bytes(plan.predicted)} of {format_bytes(plan.memory)} {host}"
        f"{'' if plan.seconds is None else f'and about {plan.seconds:.0f} s '}({plan.reason})"
    )
