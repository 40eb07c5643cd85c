"""Scores a model against masks, for every core budget: `veca evaluate`. Streamed, so scenes may be of any size."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.config import DataRecipe
from pipelines.curves import draw_scores
from pipelines.errors import RequestError
from pipelines.plan import choose_device
from pipelines.progress import Report, quiet
from pipelines.scenes import check_masks, class_lookup, find_scenes, split_scenes
from pipelines.validation import validate
from veca_core import Model
from veca_core.card import Card, Score
from veca_core.weights import write_card


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model scored on a data set."""

    model: str
    scenes: tuple[str, ...]
    scores: tuple[Score, ...]
    """One for each budget, fewest cores first."""

    def table(self) -> str:
        """The scores as text: a row for each budget."""
        names = list(dict.fromkeys(name for score in self.scores for name in score.iou))
        header = ["cores", "mean IoU", "mean Dice", *names]
        rows = [
            [str(s.cores), *(f"{v:.3f}" for v in (s.mean_iou, s.mean_dice, *(s.iou.get(n, math.nan) for n in names)))]
            for s in self.scores
        ]
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
        return "\n".join(
            "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in (header, *rows)
        )


def evaluate(
    model: Model,
    data: DataRecipe,
    *,
    cores: Sequence[int] | None = None,
    everything: bool = False,
    device: str = "auto",
    report: Report = quiet,
) -> Evaluation:
    """Segments the held-back scenes (or `everything`) with each budget and compares with their masks.

    Pixels that are ignored, or that have no data, are left out. IoU is intersection over union of all pixels of all
    scenes together; the mean is over the classes that are there or were called. Raises RequestError for data that
    does not fit the model's classes.
    """
    scenes = find_scenes(data, classes=model.card.classes, spacing=model.card.spacing)
    values = [c.value for c in model.card.classes]
    check_masks(scenes, values, data.ignore)
    chosen = scenes if everything else split_scenes(scenes, data).validation
    wrong = [s.image for s in chosen if len(s.image.bands) != len(model.card.bands.names)]
    if wrong:
        expected = len(model.card.bands.names)
        raise RequestError(f"{wrong[0].path} has {len(wrong[0].bands)} bands; {model.card.name} reads {expected}")
    lookup = class_lookup(values, data.ignore)
    place = choose_device(device)
    network = model.network.to(place)
    budgets = [network.encoder.config.check_budget(budget) for budget in cores or network.encoder.config.budgets]
    scores = []
    multiple = network.encoder.config.patch
    for budget in budgets:
        confusion = validate(
            network,
            chosen,
            lookup,
            place,
            cores=budget,
            window=model.card.window,
            multiple=multiple,
        )
        scores.append(confusion.score(budget, [c.name for c in model.card.classes]))
        report(f"{budget} cores: mean IoU {scores[-1].mean_iou:.4f}")
    return Evaluation(model.card.name, tuple(scene.name for scene in chosen), tuple(scores))


def write_evaluation(evaluation: Evaluation, out: Path) -> list[Path]:
    """Leaves evaluation.json and evaluation.png in a folder."""
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "model": evaluation.model,
        "scenes": evaluation.scenes,
        "scores": [score.model_dump() for score in evaluation.scores],
    }
    path = out / "evaluation.json"
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    picture = out / "evaluation.png"
    draw_scores(evaluation.scores, f"{evaluation.model}: IoU for each core budget", picture)
    return [path, picture]


def record_scores(model: Model, evaluation: Evaluation) -> Card:
    """Writes the scores into the model's own card, where the planner and the user find them."""
    card = model.card.model_copy(update={"scores": evaluation.scores})
    write_card(model.folder, card)
    return card
