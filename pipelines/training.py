"""Trains a model from labelled images: `veca train`. Checkpointed, resumable, validated on whole held-back scenes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.utils.data import DataLoader

from pipelines.augment import Augment
from pipelines.bands import match_bands
from pipelines.candidate import candidate, start_bands
from pipelines.checkpoint import alone_in, images_of, read_checkpoint, write_checkpoint, write_row
from pipelines.config import NetworkRecipe, TrainRecipe
from pipelines.crops import Crops, collate
from pipelines.curves import draw_curves
from pipelines.device import choose_device
from pipelines.errors import RequestError
from pipelines.optimiser import learning_rate
from pipelines.progress import Report, quiet
from pipelines.scenes import Scene, Split, check_masks, class_lookup, find_scenes, held_back, split_scenes
from pipelines.steps import Learner, not_finite
from pipelines.summary import PAGE, SAMPLES, Samples, write_page
from pipelines.survey import doubts, measure_bands
from pipelines.team import ALONE, Team
from pipelines.thrift import held_before, plan_thrift
from pipelines.validation import check_window, validate
from veca_core import ModelError
from veca_core.card import Bands

LOG: Final = "log.csv"
COLUMNS: Final = ("step", "loss", "rate", "cores", "seconds", "mean_iou")
CURVES: Final = "curves.png"
STATE: Final = "training.pt"
BEST: Final = "best"
"""Folder, inside a run's folder, of the model with the best validation score so far."""
SAVE_EVERY: Final = 300.0
"""Seconds after which a checkpoint is written between validations."""


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """What a training left."""

    folder: Path
    """The model: model.safetensors and model.json."""
    mean_iou: float
    """On the held-back scenes, at full budget."""
    step: int
    """The step that was best."""


def train(
    recipe: TrainRecipe,
    out: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    memory: int | None = None,
    team: Team = ALONE,
    report: Report = quiet,
) -> TrainedModel:
    """Trains what a recipe says, into the folder `out`; a stopped run goes on where its last checkpoint was.

    Leaves out/best (the model), out/summary.html, log.csv and pictures, and training.pt (to go on from). Within
    `memory` bytes a batch goes through in parts, or blocks are computed twice. A `team` shares each batch, and its
    first process writes. Raises RequestError for data that does not fit the recipe, or a loss or gradients that are no
    numbers.
    """
    if threads:
        torch.set_num_threads(threads)
    with alone_in(out) if team.leads else nullcontext():
        run = Run.prepare(recipe, out, choose_device(device), report if team.leads else quiet, overwrite, team)
        run.settle(memory)
        run.go_on()
        return run.result()


class Run:
    """One training: what learns, from which crops, and where it stands."""

    def __init__(
        self, recipe: TrainRecipe, out: Path, device: torch.device, split: Split, bands: Bands, team: Team = ALONE
    ) -> None:
        self.recipe, self.out, self.device, self.split, self.team = recipe, out, device, split, team
        if recipe.schedule.batch % team.size:
            raise RequestError(
                f"{team.size} processes cannot share a batch of {recipe.schedule.batch} crops evenly; "
                f"make schedule.batch a multiple of {team.size}"
            )
        values = [c.value for c in recipe.classes]
        self.lookup = class_lookup(values, recipe.data.ignore)
        self.bands = bands
        self.images = images_of(bands, split.train, split.validation)
        torch.manual_seed(recipe.schedule.seed)
        self.candidate = candidate(recipe, bands, held_back(split.validation, recipe.data.blocks))
        check_window(recipe.window, self.candidate.multiple)
        self.learner = Learner(self.candidate, recipe, device, team)
        self.step = 0
        self.best, self.best_step = -1.0, 0
        self.losses: list[float] = []
        """Since the last validation."""
        self.report: Report = quiet

    @classmethod
    def prepare(
        cls,
        recipe: TrainRecipe,
        out: Path,
        device: torch.device,
        report: Report,
        overwrite: bool = False,
        team: Team = ALONE,
    ) -> Run:
        """Checks the data, builds the network, and loads the last checkpoint where there is one."""
        scenes = find_scenes(recipe.data, classes=recipe.classes, spacing=recipe.spacing)
        counts = check_masks(scenes, [c.value for c in recipe.classes], recipe.data.ignore)
        split = split_scenes(scenes, recipe.data)
        for line in doubts(recipe, scenes, counts, split):
            report(line)
        bands = recipe.bands or _bands(recipe.network, split.train)
        match_bands((scene.image for scene in scenes), bands.names, bands.dtype)
        if overwrite and team.leads:
            remove_run(out)
        team.wait()
        run = cls(recipe, out, device, split, bands, team)
        run.report = report
        run.load_or_start()
        report(f"{len(split.train)} scenes to learn from, {len(split.validation)} held back; {run.learner.size}")
        return run

    def load_or_start(self) -> None:
        """The last checkpoint, or the weights that the recipe starts from."""
        path = self.out / STATE
        if path.is_file():
            if self.recipe.network.keep:
                self.learner.start()
            state = read_checkpoint(path, self.device, self.recipe.model_dump_json(), self.images)
            self.learner.load_state_dict(state)
            self.step, self.best, self.best_step = state["step"], state["best"], state["best_step"]
            self.losses = state["losses"]
            self.report(f"going on after step {self.step} of {self.recipe.schedule.steps}")
            return
        if self.team.leads:
            self.learner.start()  # fetches what is not there yet
        self.team.wait()
        if not self.team.leads:
            self.learner.start()

    def settle(self, memory: int | None) -> None:
        """How batches go through: whole, or as they fit into `memory` bytes."""
        thrift = self.learner.thrift
        if memory is not None:
            side = max(64, *self.recipe.schedule.crops)  # one crop of 32 px leaves a single value to normalise by
            crop = torch.zeros(1, len(self.bands.names), side, side)
            weights = sum(p.numel() * p.element_size() for p in self.learner.network.parameters() if p.requires_grad)
            share = self.recipe.schedule.batch // self.team.size
            # One plan for all: parts of unequal size would wait for each other for ever.
            saved = self.team.agreed(self.learner.saved(crop))
            held = max(self.team.collected([held_before(self.device)]))
            thrift = plan_thrift(saved, weights, share, memory, held)
            self.report(f"plan: {thrift}")
        self.learner.settle(thrift)

    def go_on(self) -> None:
        """Runs the remaining steps."""
        schedule = self.recipe.schedule
        started = saved = time.monotonic()
        for images, target in self.batches():
            if self.stale:
                break
            cores = self.draw_cores()
            self.losses.append(self.learner.learn(images, target, cores, self.step))
            self.step += 1
            if wrong := not_finite(self.losses[-1], self.learner.norm):
                raise RequestError(f"{wrong} at step {self.step}: {self.way_on()}")
            if self.step % 10 == 0:
                self.report(f"step {self.step}/{schedule.steps}  loss {np.mean(self.losses[-10:]):.4f}")
            if self.step % schedule.validate_every == 0 or self.step == schedule.steps:
                self.milestone(cores, time.monotonic() - started)
                started = saved = time.monotonic()
            elif time.monotonic() - saved > SAVE_EVERY:
                self.save_checkpoint()
                saved = time.monotonic()

    def way_on(self) -> str:
        """What to do when a step fails. Another rate is another recipe, which cannot go on in this folder."""
        advice = f"lower the rate ({self.recipe.schedule.rate})"
        if (self.out / STATE).is_file():
            advice += " and give another --out"
        if not self.best_step:
            return advice
        advice += f"; the model of step {self.best_step} is kept"
        if self.recipe.network.rival:
            return advice
        return f"{advice}, and --set network.pretrained={(self.out / BEST).resolve()} goes on from it"

    @property
    def stale(self) -> bool:
        """Whether the recipe's patience is at an end."""
        schedule = self.recipe.schedule
        waited = (self.step - self.best_step) // schedule.validate_every
        return schedule.patience is not None and waited >= schedule.patience

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of the batches that are still to do, each the same whenever the run was stopped."""
        schedule = self.recipe.schedule
        augments = [Augment(self.recipe.augment, side, self.lookup) for side in schedule.crops]
        crops = Crops(
            self.split.train, self.lookup, self.bands.mean, augments, schedule.balance, schedule.seed,
            schedule.border, schedule.batch,
        )  # fmt: skip
        mine = schedule.batch // self.team.size
        starts = (step * schedule.batch + self.team.rank * mine for step in range(self.step, schedule.steps))
        return iter(DataLoader(crops, batch_sampler=(list(range(i, i + mine)) for i in starts), collate_fn=collate))

    def draw_cores(self) -> int:
        """The budget of this step, drawn with the encoder's weights; depends on seed and step alone."""
        weights = np.array(self.candidate.draw_weights, dtype=np.float64)
        rng = np.random.default_rng((self.recipe.schedule.seed, self.step, 1))
        return int(rng.choice(self.candidate.budgets, p=weights / weights.sum()))

    def milestone(self, cores: int, seconds: float) -> None:
        """Validates, keeps the best model, logs, draws the curves and writes a checkpoint."""
        full = self.candidate.budgets[-1]
        network = self.learner.kept()
        scenes = self.split.validation
        samples = Samples(self.recipe.classes)
        try:
            measured = validate(
                network, self.team.share(scenes), self.lookup, self.device,
                cores=full, window=self.recipe.window, multiple=self.candidate.multiple, see=samples.see,
            )  # fmt: skip
        except ModelError as error:
            raise RequestError(f"what the network says after step {self.step} is no number: {self.way_on()}") from error
        measured.scenes = self.team.collected(measured.scenes)
        confusion = measured.confusion
        mean_iou, loss = confusion.mean_iou, float(np.mean(self.losses))
        self.losses = []
        better = mean_iou > self.best
        if better:
            self.best, self.best_step = mean_iou, self.step
        per_class = ", ".join(f"{c.name} {v:.3f}" for c, v in zip(self.recipe.classes, confusion.iou, strict=True))
        if self.team.leads:
            if better:
                self.candidate.save(
                    self.out / BEST, network, measured.score(full, [c.name for c in self.recipe.classes])
                )
                samples.write(self.out / SAMPLES)
            rate = learning_rate(self.step - 1, self.recipe.schedule)
            row = (self.step, round(loss, 5), f"{rate:.3g}", cores, round(seconds, 1), round(mean_iou, 4))
            write_row(self.out / LOG, COLUMNS, row)
            self.summarise()
        self.report(f"step {self.step}: validation mean IoU {mean_iou:.4f} (best {self.best:.4f}); {per_class}")
        self.save_checkpoint()

    def summarise(self) -> None:
        """Draws the curves, and writes the page."""
        draw_curves(self.out / LOG, self.out / CURVES)
        lead = (
            f"Step {self.step} of {self.recipe.schedule.steps}. Best so far: mean IoU {self.best:.4f} at step "
            f"{self.best_step}; {held_back(self.split.validation, self.recipe.data.blocks)}."
        )
        pictures = (
            (self.out / CURVES, "Loss, and score on the held-back images"),
            (self.out / SAMPLES, "Held-back images; what is known of them; what the best model says"),
        )
        places = {"data": {"images", "masks", "shapes", "instances"}, "network": {"pretrained"}}
        plain = self.recipe.model_dump(mode="json", exclude=places)
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        write_page(self.out / PAGE, f"Training of {self.recipe.name}", lead, text, pictures, self.recipe.classes)

    def save_checkpoint(self) -> None:
        """Writes everything that a resumed run needs."""
        if self.team.leads:
            state = {"step": self.step, "best": self.best, "best_step": self.best_step, "losses": self.losses}
            facts = {"recipe": self.recipe.model_dump_json(), "images": self.images}
            write_checkpoint(self.out / STATE, {**state, **self.learner.state_dict(), **facts})

    def result(self) -> TrainedModel:
        return TrainedModel(self.out / BEST, self.best, self.best_step)


def _bands(network: NetworkRecipe, scenes: Sequence[Scene]) -> Bands:
    """What nobody stated: the bands of what training goes on from or, where that reads numbers of another type than the
    scenes hold, their order alone; the rest is measured."""
    start, dtype = start_bands(network), str(scenes[0].image.dtype)
    if start is None:
        return measure_bands(scenes)
    match_bands((scene.image for scene in scenes), start.names, dtype)
    return start if start.dtype == dtype else measure_bands(scenes)


def remove_run(out: Path) -> None:
    """Forgets a run: what `--overwrite` does. Whatever else lies in the folder is left alone."""
    shutil.rmtree(out / BEST, ignore_errors=True)
    for name in (STATE, LOG, CURVES, SAMPLES, PAGE):
        (out / name).unlink(missing_ok=True)
