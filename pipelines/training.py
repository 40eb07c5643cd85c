"""Trains a model from labelled images: `veca train`. Checkpointed, resumable, validated on whole held-back scenes."""

from __future__ import annotations

import csv
import math
import pickle
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import swa_utils
from torch.utils.data import DataLoader

from pipelines.augment import Augment
from pipelines.carry import Carry
from pipelines.config import NetworkRecipe, TrainRecipe
from pipelines.crops import Crops, collate
from pipelines.errors import RequestError
from pipelines.fetch import cache_folder
from pipelines.inference import Predictor, autocast, fast_precision
from pipelines.losses import DiceAndCrossEntropy
from pipelines.measure import Confusion
from pipelines.plan import choose_device
from pipelines.pretrained import load_imagenet
from pipelines.progress import Report, quiet
from pipelines.scenes import IGNORE, Scene, Split, check_masks, class_lookup, find_scenes, split_scenes
from tiling import Grid, View, blocks
from veca_core import Segmenter, VecaConfig, build, load_model, preset, save_model
from veca_core.card import Architecture, Bands, Card

LOG: Final = "log.csv"
COLUMNS: Final = ("step", "loss", "rate", "cores", "seconds", "mean_iou")
CURVES: Final = "curves.png"
STATE: Final = "training.pt"
BEST: Final = "best"
"""Folder, inside a run's folder, of the model with the best validation score so far."""
VALIDATION_BLOCK: Final = 2048


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
        config = network_config(recipe.network, len(bands.names))
        self.card = new_card(recipe, bands, config)
        torch.manual_seed(recipe.schedule.seed)
        self.network = build(self.card.architecture, bands, len(values)).to(device)
        ema: Any = swa_utils.get_ema_multi_avg_fn(recipe.schedule.average)  # type: ignore[no-untyped-call]
        self.average = swa_utils.AveragedModel(self.network, multi_avg_fn=ema, use_buffers=True)
        self.optimiser = torch.optim.AdamW(
            parameter_groups(self.network, recipe), lr=recipe.schedule.rate, weight_decay=recipe.schedule.weight_decay
        )
        self.loss = DiceAndCrossEntropy(len(values))
        self.precision = fast_precision(device)
        self.step = 0
        self.best, self.best_step = -1.0, 0
        self.report: Report = quiet

    @classmethod
    def prepare(
        cls, recipe: TrainRecipe, out: Path, device: torch.device, report: Report, overwrite: bool = False
    ) -> Run:
        """Checks the data, builds the network, and loads the last checkpoint where there is one."""
        scenes = find_scenes(recipe.data)
        check_masks(scenes, [c.value for c in recipe.classes], recipe.data.ignore)
        split = split_scenes(scenes, recipe.data)
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
            load_start(run.network, recipe.network)
            run.average.module.load_state_dict(run.network.state_dict())
        report(f"{len(split.train)} scenes to learn from, {len(split.validation)} held back; {_millions(run.network)}")
        return run

    def go_on(self) -> None:
        """Runs the remaining steps."""
        schedule = self.recipe.schedule
        started = time.monotonic()
        losses: list[float] = []
        for images, target in self.batches():
            cores = self.draw_cores()
            losses.append(self.learn(images, target, cores))
            if not math.isfinite(losses[-1]):
                raise RequestError(
                    f"the loss became {losses[-1]} at step {self.step}; lower the rate ({schedule.rate})"
                )
            if self.step % 10 == 0:
                self.report(f"step {self.step}/{schedule.steps}  loss {np.mean(losses[-10:]):.4f}")
            if self.step % schedule.validate_every == 0 or self.step == schedule.steps:
                seconds = time.monotonic() - started
                self.milestone(float(np.mean(losses)), cores, seconds)
                losses, started = [], time.monotonic()

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches that are still to do, each the same whenever the run was stopped."""
        schedule = self.recipe.schedule
        augment = Augment(self.recipe.augment, schedule.crop)
        crops = Crops(self.split.train, self.lookup, self.card.bands.mean, augment, schedule.balance, schedule.seed)
        todo = range(self.step * schedule.batch, schedule.steps * schedule.batch)
        return iter(DataLoader(crops, schedule.batch, sampler=todo, collate_fn=collate))

    def draw_cores(self) -> int:
        """The budget of this step, drawn with the encoder's weights; depends on seed and step alone."""
        config = self.network.encoder.config
        weights = np.array(config.draw_weights, dtype=np.float64)
        rng = np.random.default_rng((self.recipe.schedule.seed, self.step, 1))
        return int(rng.choice(config.budgets, p=weights / weights.sum()))

    def learn(self, images: Tensor, target: Tensor, cores: int) -> float:
        """One optimiser step; returns the loss."""
        self.network.train()
        # Draws inside the network (coordinate jitter) are the same after a resume.
        torch.manual_seed(self.recipe.schedule.seed * 1_000_003 + self.step)
        rate = learning_rate(self.step, self.recipe)
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
        network = cast(Segmenter, self.average.module)
        confusion = validate(network, self.card, self.split.validation, self.lookup, self.device)
        mean_iou = confusion.mean_iou
        if mean_iou > self.best:
            self.best, self.best_step = mean_iou, self.step
            names = [c.name for c in self.card.classes]
            score = confusion.score(network.encoder.config.cores, names)
            card = self.card.model_copy(update={"scores": (score,)})
            save_model(self.out / BEST, network, card, getattr(torch, self.recipe.store))
        rate = learning_rate(self.step - 1, self.recipe)
        self.log((self.step, round(loss, 5), f"{rate:.3g}", cores, round(seconds, 1), round(mean_iou, 4)))
        per_class = ", ".join(f"{c.name} {v:.3f}" for c, v in zip(self.card.classes, confusion.iou, strict=True))
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


def validate(
    network: Segmenter,
    card: Card,
    scenes: Sequence[Scene],
    lookup: NDArray[np.uint8],
    device: torch.device,
    cores: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Confusion:
    """Segments whole scenes at native resolution, through the same path as `segment`, against their masks."""
    config = network.encoder.config
    predictor = Predictor(network.eval(), config.check_budget(cores), 1, device, fast_precision(device))
    confusion = Confusion(len(card.classes))
    indices = np.arange(len(card.classes), dtype=np.uint8)
    for scene in scenes:
        view = View.open(scene.image)
        grid = Grid.over(view.size, card.window, card.window // 8, config.patch)
        carry = Carry(view.size)
        for block in blocks(view.size, VALIDATION_BLOCK):
            called = predictor.predict_block(view, grid, block, carry=carry).labels(indices, IGNORE)
            confusion.add(scene.targets(block, lookup), called)
        tick()
    return confusion


def learning_rate(step: int, recipe: TrainRecipe) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    schedule = recipe.schedule
    if step < schedule.warmup:
        return schedule.rate * (step + 1) / schedule.warmup
    progress = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return schedule.rate * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, progress))) / 2)


def parameter_groups(network: Segmenter, recipe: TrainRecipe) -> list[dict[str, Any]]:
    """Matrices decay, vectors do not; a pretrained stem learns at its own share of the rate."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        slow = recipe.network.pretrained is not None and name.startswith("encoder.stem.body.")
        groups.setdefault((slow, parameter.ndim > 1), []).append(parameter)
    decay = recipe.schedule.weight_decay
    stem_rate = recipe.schedule.stem_rate
    return [
        {"params": parameters, "factor": stem_rate if slow else 1.0, "weight_decay": decay if decays else 0.0}
        for (slow, decays), parameters in groups.items()
    ]


def network_config(network: NetworkRecipe, bands: int) -> VecaConfig:
    """The encoder's sizes for a recipe and a number of bands; raises RequestError for a field that does not exist."""
    try:
        return preset(network.preset, **{**network.overrides, "in_channels": bands})
    except TypeError as error:
        raise RequestError(f"network.overrides: {error}") from error


def load_start(network: Segmenter, recipe: NetworkRecipe) -> None:
    """The weights that training starts from; raises RequestError where they are for another network."""
    if recipe.pretrained == "imagenet":
        load_imagenet(network.encoder.stem, recipe.stem, cache_folder())
    elif recipe.pretrained is not None:
        start = load_model(recipe.pretrained).network
        try:
            network.encoder.load_state_dict(start.encoder.state_dict())
        except RuntimeError as error:
            raise RequestError(
                f"the weights of {recipe.pretrained} do not fit this network; give the recipe its preset, stem, "
                "overrides and bands, or leave 'pretrained' out"
            ) from error
        if start.classes == network.classes:
            network.head.load_state_dict(start.head.state_dict())


def new_card(recipe: TrainRecipe, bands: Bands, config: VecaConfig) -> Card:
    """The card of a model that is not trained yet."""
    fields = {name: getattr(config, name) for name in VecaConfig.__dataclass_fields__}
    started = {"imagenet": f"; stem {recipe.network.stem} started from ImageNet weights"}
    return Card(
        name=recipe.name,
        summary=recipe.summary,
        architecture=Architecture(encoder=fields, stem=recipe.network.stem, head=recipe.network.head),
        classes=recipe.classes,
        bands=bands,
        kind=recipe.kind,
        spacing=recipe.spacing,
        window=recipe.window,
        validation="held back: " + (", ".join(recipe.data.validate_on) or "a fifth of the groups"),
        data=recipe.source + started.get(str(recipe.network.pretrained), ""),
        licence=recipe.licence,
        recipe=recipe.recipe,
        limits=recipe.limits,
    )


def measure_bands(scenes: Sequence[Scene]) -> Bands:
    """Band names of the first scene; mean and deviation of every band over every 16th pixel of the valid ones."""
    first = scenes[0].image
    sums = np.zeros((3, len(first.bands)))
    for scene in scenes:
        box = scene.image.levels[0].size.box
        pixels = scene.image.read(box)[::4, ::4].astype(np.float64)
        pixels = pixels[scene.image.valid(box)[::4, ::4]]
        if pixels.shape[1] != len(first.bands):
            raise RequestError(f"{scene.image.path} has {pixels.shape[1]} bands, {first.path} {len(first.bands)}")
        sums += [np.full(len(first.bands), len(pixels)), pixels.sum(axis=0), (pixels**2).sum(axis=0)]
    mean = sums[1] / np.maximum(sums[0], 1)
    deviation = np.sqrt(np.maximum(sums[2] / np.maximum(sums[0], 1) - mean**2, 1e-12))
    rounded = [tuple(float(f"{v:.6g}") for v in values) for values in (mean, deviation)]
    return Bands(names=first.bands, mean=rounded[0], std=rounded[1], dtype=str(first.dtype))


def remove_run(out: Path) -> None:
    """Forgets a run: what `--overwrite` does. Whatever else lies in the folder is left alone."""
    shutil.rmtree(out / BEST, ignore_errors=True)
    for name in (STATE, LOG, CURVES):
        (out / name).unlink(missing_ok=True)


def _millions(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} million parameters"
