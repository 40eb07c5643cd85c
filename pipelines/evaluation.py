"""Scores a model against what is known, for every core budget, and beside a rival: `veca evaluate`."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from pipelines.bands import match_bands
from pipelines.config import DataRecipe
from pipelines.curves import draw_scores
from pipelines.device import choose_device
from pipelines.errors import RequestError
from pipelines.progress import Report, quiet
from pipelines.rival import Rival, Terms, load_rival
from pipelines.scenes import Scene, check_masks, class_lookup, find_scenes, held_back, held_before, split_scenes
from pipelines.summary import PAGE, SAMPLES, Samples, write_page
from pipelines.validation import See, check_window, validate
from veca_core import Model
from veca_core.card import Card, ClassInfo, Score
from veca_core.weights import write_card

EXTRAS: Final = {"boundary_f1": "border F1", "ece": "ECE", "pq": "PQ"}
"""Further fields of a score -> what a table calls them."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model scored on a data set."""

    model: str
    scenes: tuple[str, ...]
    held: str
    """Which scenes were held back, as a card says it; empty where others were scored too."""
    scores: tuple[Score, ...]
    """One for each budget, fewest cores first."""
    window: int | None = None
    """Side of the windows; None: the model's own."""
    rivals: tuple[tuple[str, Score], ...] = ()
    """What others scored on the same scenes."""
    notes: tuple[str, ...] = ()
    """What must be known to compare them."""

    def table(self) -> str:
        """The scores as text: a row for each budget, and one for each rival."""
        rows = [(str(score.cores), score) for score in self.scores] + list(self.rivals)
        names = list(dict.fromkeys(name for _, score in rows for name in score.iou))
        extras = [name for name in EXTRAS if any(getattr(score, name) is not None for _, score in rows)]
        dice = (f"Dice {name}" for name in names)
        lines = [["cores", "mean IoU", "95 %", "mean Dice", *(EXTRAS[e] for e in extras), *names, *dice]]
        for label, score in rows:
            span = "-".join(f"{v:.3f}" for v in score.interval) if score.interval else ""
            per_class = [each.get(name) for each in (score.iou, score.dice) for name in names]
            values = (*(getattr(score, e) for e in extras), *per_class)
            lines.append([label, f"{score.mean_iou:.3f}", span, f"{score.mean_dice:.3f}", *map(_digits, values)])
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)

    def content(self) -> dict[str, Any]:
        """What is kept of it as JSON."""
        return {
            "model": self.model,
            "window": self.window,
            "scenes": self.scenes,
            "scores": [_facts(score) for score in self.scores],
            "rivals": {name: _facts(score) for name, score in self.rivals},
            "notes": self.notes,
        }


def evaluate(
    model: Model,
    data: DataRecipe,
    *,
    cores: Sequence[int] | None = None,
    everything: bool = False,
    recording: bool = False,
    comparing: bool = False,
    window: int | None = None,
    device: str = "auto",
    report: Report = quiet,
    see: See | None = None,
) -> Evaluation:
    """Segments the held-back scenes (or `everything`) with each budget and compares with what is known of them.

    Images are read at the model's spacing. Pixels that are ignored, or that have no data, are left out. IoU is
    intersection over union of all pixels of all scenes together; the mean is over the classes that are there or were
    called; its interval is a bootstrap over images. `see` is shown what the last budget says. Raises RequestError for
    data that does not fit the model's classes and, before anything is scored, for what `recording` could not record, or
    where `comparing` with a rival would not be fair.
    """
    card, network = model.card, model.network
    budgets = [network.encoder.config.check_budget(budget) for budget in cores or network.encoder.config.budgets]
    scenes, chosen = _scenes(card, data, everything)
    held = "" if everything else held_back(chosen, data.blocks)
    other = None if window == card.window else window
    if recording:
        _check_recorded(card, held, other)
    notes = []
    if held and (before := held_before(card.validation, held, scenes)):
        notes.append(
            f"{card.name} was made with {before} held back, and may have learned from the scenes that are scored here"
        )
        if comparing:
            raise RequestError(f"{notes[0]}, which a rival would not; hold back what the model's training did")
        report(f"warning: {notes[0]}")
    score = _scorer(card, data, chosen, window, device)
    scores = []
    for budget in budgets:
        shown = see if budget == budgets[-1] else None
        scores.append(score(network, budget, network.encoder.config.patch, shown))
        report(f"{budget} cores: mean IoU {scores[-1].mean_iou:.4f}")
    return Evaluation(card.name, tuple(scene.name for scene in chosen), held, tuple(scores), other, notes=tuple(notes))


def evaluate_rival(
    model: Model,
    terms: Terms,
    out: Path,
    *,
    everything: bool = False,
    window: int | None = None,
    device: str = "auto",
    report: Report = quiet,
) -> Score:
    """What a rival scores on the scenes that the model is scored on, trained on such `terms` as `fair_terms` finds.

    It is trained in out/rivals, or loaded where it was before. As the model is, so the rival is the milestone that did
    best on the held-back scenes.
    """
    from pipelines.training import train

    check_window(window or model.card.window, Rival.multiple)
    if terms.start:
        report(f"note: {terms.start}")
    recipe, folder = terms.recipe, re.sub(r"[^A-Za-z0-9._-]+", "-", str(terms.recipe.network.rival))
    trained = train(recipe, out / "rivals" / folder, device=device, report=report)
    _, chosen = _scenes(model.card, recipe.data, everything)
    return _scorer(model.card, recipe.data, chosen, window, device)(load_rival(trained.folder), 0, Rival.multiple)


def write_evaluation(evaluation: Evaluation, out: Path, samples: Samples | None = None) -> list[Path]:
    """Leaves evaluation.json and evaluation.png in a folder; with `samples` also those, and a page of it all."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "evaluation.json"
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(evaluation.content(), indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    picture = out / "evaluation.png"
    draw_scores(evaluation.scores, f"{evaluation.model}: IoU for each core budget", picture, evaluation.rivals)
    if samples is None or not samples.rows:
        return [path, picture]
    samples.write(out / SAMPLES)
    pictures = (
        (picture, "IoU for each number of cores"),
        (out / SAMPLES, f"Parts of {', '.join(samples.names)}: the image; what is known of it; what the model says"),
    )
    scored = f"{len(evaluation.scenes)} scenes, {evaluation.held or 'held back or not'}"
    lead = " ".join(f"{sentence}." for sentence in (scored, *evaluation.notes))
    write_page(out / PAGE, f"Scores of {evaluation.model}", lead, evaluation.table(), pictures, samples.classes)
    return [path, picture, out / SAMPLES, out / PAGE]


def record_scores(model: Model, evaluation: Evaluation) -> Card:
    """Writes the scores into the model's own card, where the planner and the user find them.

    Scores of other budgets stay where they are of the same scenes. Raises RequestError where scenes were scored that
    may have been learned from, or with other windows than the model's own.
    """
    card = model.card
    _check_recorded(card, evaluation.held, evaluation.window)
    before = {s.cores: s for s in card.scores} if card.validation == evaluation.held else {}
    scores = {**before, **{s.cores: s for s in evaluation.scores}}
    card = card.model_copy(update={"scores": tuple(scores[c] for c in sorted(scores)), "validation": evaluation.held})
    write_card(model.folder, card)
    return card


def _check_recorded(card: Card, held: str, window: int | None) -> None:
    """Raises RequestError unless the scenes that are `held` back are those of the model's training, and windows its."""
    if window is not None:
        raise RequestError(
            f"a card records what the model's own window of {card.window} px gave, not {window}; leave out --window, "
            "or --record"
        )
    if not held:
        raise RequestError("a card records what held-back scenes gave; leave out --everything, or --record")
    if card.validation and held != card.validation:
        raise RequestError(
            f"{card.name} was trained with other scenes ({card.validation}) than this recipe has ({held}), and may "
            "have learned from these; give the recipe of its training, or leave out --record"
        )


def check_classes(card: Card, classes: Sequence[ClassInfo]) -> None:
    """Raises RequestError where masks say a class by another value than the model does: they are read by its values."""
    values = {c.name: c.value for c in card.classes}
    other = [c for c in classes if values.get(c.name, c.value) != c.value]
    if other:
        theirs = ", ".join(f"{c.name!r} is {c.value} in the masks and {values[c.name]} in the model" for c in other)
        raise RequestError(f"{card.name} has other values for these classes: {theirs}; give masks with its values")


def _scenes(card: Card, data: DataRecipe, everything: bool) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """All scenes, checked against the model, and those to score."""
    scenes = find_scenes(data, classes=card.classes, spacing=card.spacing)
    counts = check_masks(scenes, [c.value for c in card.classes], data.ignore)
    chosen = scenes if everything else split_scenes(scenes, data).validation
    scored = {id(scene) for scene in chosen}
    if not counts[[id(scene) in scored for scene in scenes]].sum():
        raise RequestError("no image to score shows a pixel of any class: all is ignored there; score others")
    match_bands((scene.image for scene in chosen), card.bands.names, card.bands.dtype, reader=card.name)
    return scenes, chosen


def _scorer(
    card: Card, data: DataRecipe, scenes: Sequence[Scene], window: int | None, device: str
) -> Callable[..., Score]:
    """(network, cores, multiple of its windows' sides, who is shown what it says) -> its score."""
    place: torch.device = choose_device(device)
    lookup = class_lookup([c.value for c in card.classes], data.ignore)

    def score(network: nn.Module, cores: int, multiple: int, see: See | None = None) -> Score:
        measured = validate(
            network.to(place), scenes, lookup, place,
            cores=cores, window=window or card.window, multiple=multiple, thorough=True, see=see,
        )  # fmt: skip
        return measured.score(cores, [c.name for c in card.classes])

    return score


def _facts(score: Score) -> dict[str, Any]:
    """A score with what follows from it."""
    return {**score.model_dump(), "dice": score.dice}


def _digits(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3f}"
