"""Trains a model from labelled images: `veca train`. Checkpointed, resumable, validated on whole held-back scenes."""

from __future__ import annotations

import csv
import math
import pickle
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import swa_utils
from torch.utils.data import DataLoader

from pipelines.augment import Augment
from pipelines.candidate import candidate
from pipelines.config import TrainRecipe
from pipelines.crops import Crops, collate
from pipelines.errors import RequestError
from pipelines.fast import quicken
from pipelines.inference import autocast, fast_precision
from pipelines.losses import SegmentationLoss
from pipelines.optimiser import learning_rate, make_optimiser
from pipelines.plan import choose_device
from pipelines.progress import Report, quiet
from pipelines.scenes import Scene, Split, check_masks, class_lookup, find_scenes, held_back, split_scenes
from pipelines.validation import validate
from veca_core.card import Bands

LOG: Final = "log.csv"
COLUMNS: Final = ("step", "loss", "rate", "cores", "seconds", "mean_iou")
CURVES: Final = "curves.png"
STATE: Final = "training.pt"
BEST: Final = "best"
"""Folder, inside a run's folder, of the model with the best validation score so far."""
MEASURED: Final = 1024
MEASURED_BOXES: Final = 36
"""Bands are measured in at most about so many boxes of that side a scene."""


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
    report: Report = quiet,
) -> TrainedModel:
    """Trains what a recipe says, into the folder `out`; a stopped run goes on where its last checkpoint was.

    Leaves out/best (the model), out/log.csv, out/curves.png and out/training.pt (to go on from). Raises RequestError
    for data that does not fit the recipe, or a loss that is no number.
    """
    if threads:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    run = Run.prepare(recipe, out, choose_device(device), report, overwrite)
    run.go_on()
    return run.result()


class Run:
    """One training: the network, its optimiser and where it stands."""

    def __init__(self, recipe: TrainRecipe, out: Path, device: torch.device, split: Split, bands: Bands) -> None:
        self.recipe, self.out, self.device, self.split = recipe, out, device, split
        values = [c.value for c in recipe.classes]
        self.lookup = class_lookup(values, recipe.data.ignore)
        self.bands = bands
        torch.manual_seed(recipe.schedule.seed)
        self.candidate = candidate(recipe, bands, held_back(split.validation))
        self.network = self.candidate.network.to(device)
        ema: Any = swa_utils.get_ema_multi_avg_fn(recipe.schedule.average)  # type: ignore[no-untyped-call]
        self.average = swa_utils.AveragedModel(self.network, multi_avg_fn=ema, use_buffers=True)
        self.optimiser = make_optimiser(self.network, recipe.schedule, self.candidate.slow)
        self.loss = SegmentationLoss(len(values), recipe.loss)
        self.precision = fast_precision(device)
        quicken(self.network, device, self.precision)
        self.step = 0
        self.best, self.best_step = -1.0, 0
        self.report: Report = quiet

    @classmethod
    def prepare(
        cls, recipe: TrainRecipe, out: Path, device: torch.device, report: Report, overwrite: bool = False
    ) -> Run:
        """Checks the data, builds the network, and loads the last checkpoint where there is one."""
        scenes = find_scenes(recipe.data, classes=recipe.classes, spacing=recipe.spacing)
        counts = check_masks(scenes, [c.value for c in recipe.classes], recipe.data.ignore)
        split = split_scenes(scenes, recipe.data)
        for line in doubts(recipe, scenes, counts, split):
            report(line)
        bands = recipe.bands or measure_bands(split.train)
        wrong = [s.image for s in scenes if len(s.image.bands) != len(bands.names)]
        if wrong:
            raise RequestError(f"{wrong[0].path} has {len(wrong[0].bands)} bands; the model reads {len(bands.names)}")
        if overwrite:
            remove_run(out)
        run = cls(recipe, out, device, split, bands)
        run.report = report
        if (out / STATE).is_file():
            run.load_checkpoint()
            report(f"going on after step {run.step} of {recipe.schedule.steps}")
        else:
            run.candidate.start()
            run.average.module.load_state_dict(run.network.state_dict())
        report(f"{len(split.train)} scenes to learn from, {len(split.validation)} held back; {_millions(run.network)}")
        return run

    def go_on(self) -> None:
        """Runs the remaining steps."""
        schedule = self.recipe.schedule
        started = time.monotonic()
        losses: list[float] = []
        for images, target in self.batches():
            if self.stale:
                break
            cores = self.draw_cores()
            losses.append(self.learn(images, target, cores))
            if not math.isfinite(losses[-1]):
                kept = f"; the model of step {self.best_step} is kept" if self.best_step else ""
                raise RequestError(
                    f"the loss became {losses[-1]} at step {self.step}: lower the rate ({schedule.rate}){kept}"
                )
            if self.step % 10 == 0:
                self.report(f"step {self.step}/{schedule.steps}  loss {np.mean(losses[-10:]):.4f}")
            if self.step % schedule.validate_every == 0 or self.step == schedule.steps:
                seconds = time.monotonic() - started
                self.milestone(float(np.mean(losses)), cores, seconds)
                losses, started = [], time.monotonic()

    @property
    def stale(self) -> bool:
        """Whether the recipe's patience is at an end."""
        schedule = self.recipe.schedule
        waited = (self.step - self.best_step) // schedule.validate_every
        return schedule.patience is not None and waited >= schedule.patience

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches that are still to do, each the same whenever the run was stopped."""
        schedule = self.recipe.schedule
        augments = [Augment(self.recipe.augment, side, self.lookup) for side in schedule.crops]
        crops = Crops(
            self.split.train, self.lookup, self.bands.mean, augments, schedule.balance, schedule.seed,
            schedule.border, schedule.batch,
        )  # fmt: skip
        todo = range(self.step * schedule.batch, schedule.steps * schedule.batch)
        return iter(DataLoader(crops, schedule.batch, sampler=todo, collate_fn=collate))

    def draw_cores(self) -> int:
        """The budget of this step, drawn with the encoder's weights; depends on seed and step alone."""
        weights = np.array(self.candidate.draw_weights, dtype=np.float64)
        rng = np.random.default_rng((self.recipe.schedule.seed, self.step, 1))
        return int(rng.choice(self.candidate.budgets, p=weights / weights.sum()))

    def learn(self, images: Tensor, target: Tensor, cores: int) -> float:
        """One optimiser step; returns the loss."""
        self.network.train()
        if self.candidate.frozen is not None:
            self.candidate.frozen.eval()
        # Draws inside the network (coordinate jitter) are the same after a resume.
        torch.manual_seed(self.recipe.schedule.seed * 1_000_003 + self.step)
        rate = learning_rate(self.step, self.recipe.schedule)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimiser.zero_grad(set_to_none=True)
        with autocast(self.device, self.precision):
            logits = self.network(images.to(self.device), cores)
        loss = self.loss(logits.float(), target.to(self.device))
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        if self.step > self.recipe.schedule.warmup:
            self.average.update_parameters(self.network)
        else:
            self.average.module.load_state_dict(self.network.state_dict())
        return float(loss.detach())

    def milestone(self, loss: float, cores: int, seconds: float) -> None:
        """Validates, keeps the best model, logs, draws the curves and writes a checkpoint."""
        full = self.candidate.budgets[-1]
        network = self.average.module
        measured = validate(
            network, self.split.validation, self.lookup, self.device,
            cores=full, window=self.recipe.window, multiple=self.candidate.multiple,
        )  # fmt: skip
        confusion = measured.confusion
        mean_iou = confusion.mean_iou
        if mean_iou > self.best:
            self.best, self.best_step = mean_iou, self.step
            score = measured.score(full, [c.name for c in self.recipe.classes])
            self.candidate.save(self.out / BEST, network, score)
        rate = learning_rate(self.step - 1, self.recipe.schedule)
        self.log((self.step, round(loss, 5), f"{rate:.3g}", cores, round(seconds, 1), round(mean_iou, 4)))
        per_class = ", ".join(f"{c.name} {v:.3f}" for c, v in zip(self.recipe.classes, confusion.iou, strict=True))
        self.report(f"step {self.step}: validation mean IoU {mean_iou:.4f} (best {self.best:.4f}); {per_class}")
        self.save_checkpoint()

    def log(self, row: Sequence[Any]) -> None:
        """Adds a line to log.csv, in place of any that a stopped run left from this step on, and draws curves.png."""
        from pipelines.curves import draw_curves

        path = self.out / LOG
        rows: list[Sequence[Any]] = [COLUMNS]
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                rows += [line for line in list(csv.reader(file))[1:] if int(line[0]) < self.step]
        partial = self.out / f".{LOG}"
        with partial.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([*rows, row])
        partial.replace(path)
        draw_curves(path, self.out / CURVES)

    def save_checkpoint(self) -> None:
        """Writes everything that a resumed run needs, by a rename."""
        state = {
            "step": self.step,
            "best": self.best,
            "best_step": self.best_step,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "recipe": self.recipe.model_dump_json(),
        }
        partial = self.out / f".{STATE}"
        torch.save(state, partial)
        partial.replace(self.out / STATE)

    def load_checkpoint(self) -> None:
        """Goes on from training.pt; raises RequestError where that is damaged or belongs to another recipe."""
        path = self.out / STATE
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            recipe = state["recipe"]
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{path} cannot be read; remove it, or start anew with --overwrite") from error
        if recipe != self.recipe.model_dump_json():
            raise RequestError(f"{self.out} holds a run of another recipe; give another --out, or remove that folder")
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.best, self.best_step = state["step"], state["best"], state["best_step"]

    def result(self) -> TrainedModel:
        return TrainedModel(self.out / BEST, self.best, self.best_step)


def measure_bands(scenes: Sequence[Scene]) -> Bands:
    """Band names of the first scene; mean and deviation of every band over every 16th of the valid pixels, in some
    boxes of each scene where it is large."""
    first = scenes[0].image
    sums = np.zeros((3, len(first.bands)))
    for scene in scenes:
        if len(scene.image.bands) != len(first.bands):
            raise RequestError(
                f"{scene.image.path} has {len(scene.image.bands)} bands, {first.path} {len(first.bands)}"
            )
        boxes = list(scene.boxes(MEASURED))
        for box in boxes[:: -(-len(boxes) // MEASURED_BOXES)]:
            pixels = scene.view.read(box)[::4, ::4].astype(np.float64)
            pixels = pixels[scene.view.valid(box)[::4, ::4]]
            sums += [np.full(len(first.bands), len(pixels)), pixels.sum(axis=0), (pixels**2).sum(axis=0)]
    mean = sums[1] / np.maximum(sums[0], 1)
    deviation = np.sqrt(np.maximum(sums[2] / np.maximum(sums[0], 1) - mean**2, 1e-12))
    rounded = [tuple(float(f"{v:.6g}") for v in values) for values in (mean, deviation)]
    return Bands(names=first.bands, mean=rounded[0], std=rounded[1], dtype=str(first.dtype))


def doubts(recipe: TrainRecipe, scenes: Sequence[Scene], counts: NDArray[np.int64], split: Split) -> Iterator[str]:
    """What may be trained but will hardly be meant, a line each; `counts`: pixels of each scene and class.

    Raises RequestError for a class of which there is no pixel at all.
    """
    chosen = {id(scene) for scene in split.train}
    learned = [id(scene) in chosen for scene in scenes]
    for cls, everywhere, here in zip(recipe.classes, counts.sum(axis=0), counts[learned].sum(axis=0), strict=True):
        if not everywhere:
            raise RequestError(
                f"no image shows the class {cls.name!r} (value {cls.value}); remove it from the recipe's classes"
            )
        if not here:
            yield (
                f"warning: no image to learn from shows the class {cls.name!r} (value {cls.value}), so it will never "
                "be found; hold back other groups, or remove it"
            )
    small = sum(min(scene.area.height, scene.area.width) < max(recipe.schedule.crops) for scene in split.train)
    if small:
        yield (
            f"note: {small} of {len(split.train)} images to learn from are smaller than a crop of "
            f"{max(recipe.schedule.crops)} px; the rest of such a crop is a mirror image that is not learned from"
        )


def remove_run(out: Path) -> None:
    """Forgets a run: what `--overwrite` does. Whatever else lies in the folder is left alone."""
    shutil.rmtree(out / BEST, ignore_errors=True)
    for name in (STATE, LOG, CURVES):
        (out / name).unlink(missing_ok=True)


def _millions(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} million parameters"
