"""Plots of a training and of an evaluation, as PNG."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from veca_core.card import Score


def draw_curves(log: Path, out: Path) -> None:
    """Loss and validation score over steps, from a training's log.csv."""
    with log.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, [float(row["loss"]) for row in rows], marker=".", color="#3C1098")
    left.set(title="Training loss", xlabel="step", ylabel="loss")
    right.plot(steps, [float(row["mean_iou"]) for row in rows], marker=".", color="#0F7B6C")
    right.set(title="Validation, full budget", xlabel="step", ylabel="mean IoU")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    _save(figure, out)


def draw_scores(scores: Sequence[Score], title: str, out: Path, rivals: Sequence[tuple[str, Score]] = ()) -> None:
    """IoU of each class, and their mean, over the number of cores; the mean of each rival as a line across."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    cores = [score.cores for score in scores]
    for name in scores[0].iou:
        axes.plot(cores, [score.iou.get(name, math.nan) for score in scores], marker=".", alpha=0.7, label=name)
    axes.plot(cores, [score.mean_iou for score in scores], marker="o", color="black", linewidth=2, label="mean")
    for label, score in rivals:
        axes.axhline(score.mean_iou, color="black", linestyle="--", linewidth=1, label=f"mean, {label}")
    axes.set(title=title, xlabel="cores", ylabel="IoU", xticks=cores, ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    _save(figure, out)


def _save(figure: Figure, out: Path) -> None:
    partial = out.with_name(f".{out.name}")
    figure.savefig(partial, dpi=120, format="png")
    partial.replace(out)
