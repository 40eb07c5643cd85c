"""Trains an encoder to see what a teacher sees, on images without labels: `veca distill` (arXiv 2605.12491)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.augment import Augment
from pipelines.bands import match_bands, other_order
from pipelines.candidate import network_config
from pipelines.checkpoint import alone_in, images_of, read_checkpoint, write_checkpoint, write_row
from pipelines.config import ScheduleRecipe
from pipelines.crops import Crops, collate
from pipelines.device import choose_device
from pipelines.distill_recipe import DistillRecipe, Stage
from pipelines.errors import RequestError
from pipelines.fast import quicken
from pipelines.images import list_images
from pipelines.inference import autocast, fast_precision
from pipelines.optimiser import learning_rate
from pipelines.progress import Report, quiet
from pipelines.scenes import IGNORE, Scene
from pipelines.steps import not_finite
from pipelines.survey import measure_bands
from pipelines.teacher import Teacher, load_teacher
from tiling import Box, Spacing, View, open_image
from veca_core import VecaEncoder
from veca_core.card import Architecture, EncoderCard
from veca_core.encoder import Tokens
from veca_core.model import build_encoder
from veca_core.weights import save_encoder

STATE: Final = "distillation.pt"
ENCODER: Final = "encoder"
"""Folder, inside a run's folder, of the encoder so far."""
LOG: Final = "log.csv"
COLUMNS: Final = ("step", "loss", "global_cosine", "patch_cosine", "patch_mse", "rate", "cores")


@dataclass(frozen=True, slots=True)
class Nothing:
    """What is known of an unlabelled image: every pixel is of one class."""

    path: str

    def values(self, box: Box) -> NDArray[np.uint8]:
        return np.zeros((box.height, box.width), dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Losses:
    """The paper's three terms."""

    global_cosine: Tensor
    """1 - cosine of the first core and the teacher's global feature."""
    patch_cosine: Tensor
    """1 - cosine of patches, mean."""
    patch_mse: Tensor

    @property
    def total(self) -> Tensor:
        return self.global_cosine + self.patch_cosine + self.patch_mse


def losses(tokens: Tokens, whole: Tensor, patches: Tensor) -> Losses:
    """From the student's tokens (width D) and the teacher's global (B, D) and patches (B, N, D)."""
    first, seen = tokens.cores[:, 0].float(), tokens.patches.float()
    return Losses(
        1 - F.cosine_similarity(first, whole, dim=-1).mean(),
        1 - F.cosine_similarity(seen, patches, dim=-1).mean(),
        F.mse_loss(seen, patches),
    )


def distill(
    recipe: DistillRecipe,
    out: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    report: Report = quiet,
) -> Path:
    """Trains the encoder that a recipe says, into out/encoder; a stopped run goes on where its last checkpoint was.

    Raises RequestError for a teacher or images that do not fit, or a loss or gradients that are no numbers.
    """
    if threads:
        torch.set_num_threads(threads)
    with alone_in(out):
        Distillation(recipe, out, choose_device(device), report).go_on()
    return out / ENCODER


class Distillation:
    """One distillation: student, teacher, optimisers, and where it stands."""

    def __init__(self, recipe: DistillRecipe, out: Path, device: torch.device, report: Report) -> None:
        self.recipe, self.out, self.device, self.report = recipe, out, device, report
        self.scenes = unlabelled(recipe)
        self.bands = recipe.bands or measure_bands(self.scenes)
        match_bands((scene.image for scene in self.scenes), self.bands.names, self.bands.dtype)
        config = network_config(recipe.network, len(self.bands.names))
        torch.manual_seed(recipe.seed)
        self.teacher: Teacher = load_teacher(
            recipe.teacher, recipe.teacher_weights, config.patch, len(self.bands.names)
        ).to(device)
        self.order = other_order(self.bands.names, self.teacher.names)
        """Of the images' bands, where the teacher sees them in another one."""
        fields = {name: getattr(config, name) for name in type(config).__dataclass_fields__}
        fields["output_dim"] = self.teacher.dim
        architecture = Architecture(encoder=fields, stem=recipe.network.stem, deep=recipe.network.deep)
        self.card = EncoderCard(
            name=recipe.name, architecture=architecture, bands=self.bands, spacing=recipe.spacing,
            teacher=recipe.teacher, data=recipe.source, licence=recipe.licence,
        )  # fmt: skip
        torch.manual_seed(recipe.seed)
        self.student: VecaEncoder = build_encoder(architecture).to(device)
        self.mean, self.std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (self.bands.mean, self.bands.std)
        )
        self.precision = fast_precision(device)
        quicken(self.student, device, self.precision)
        self.optimisers = optimisers(self.student, recipe)
        self.schedule = ScheduleRecipe(steps=recipe.steps, warmup=recipe.warmup, rate=recipe.rate)
        self.step = 0
        if (out / STATE).is_file():
            self.load_checkpoint()
            report(f"going on after step {self.step} of {recipe.steps}")

    def go_on(self) -> None:
        """Runs the remaining steps."""
        for pixels in self.batches():
            cores = self.draw_cores()
            found = self.learn(pixels, cores)
            if self.step % self.recipe.save_every == 0 or self.step == self.recipe.steps:
                self.milestone(found, cores)

    def batches(self) -> Iterator[Tensor]:
        """The batches of raw pixels that are still to do, each the same whenever the run was stopped."""
        lookup = np.zeros(256, dtype=np.uint8)
        lookup[IGNORE] = IGNORE
        crops: dict[int, Crops] = {}
        first = 0
        for stage in self.recipe.stages:
            for step in range(max(first, self.step), first + stage.steps):
                side = self.draw_side(stage, step)
                if side not in crops:
                    augment = Augment(self.recipe.augment, side)
                    crops[side] = Crops(self.scenes, lookup, self.bands.mean, augment, 0.0, self.recipe.seed)
                items = [crops[side][step * 1000 + i] for i in range(stage.batch)]
                yield collate(items)[0]
            first += stage.steps

    def draw_side(self, stage: Stage, step: int) -> int:
        """A crop's side, cut to whole patches."""
        rng = np.random.default_rng((self.recipe.seed, step, 2))
        patch = self.student.config.patch
        return max(patch, int(rng.choice(stage.sides)) // patch * patch)

    def draw_cores(self) -> int:
        """The budget of this step, drawn with the encoder's weights."""
        weights = np.array(self.student.config.draw_weights, dtype=np.float64)
        rng = np.random.default_rng((self.recipe.seed, self.step, 1))
        return int(rng.choice(self.student.config.budgets, p=weights / weights.sum()))

    def learn(self, pixels: Tensor, cores: int) -> Losses:
        """One step of both optimisers; RequestError, and no step, where loss or gradients are no finite numbers."""
        self.student.train()
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)
        rate = learning_rate(self.step, self.schedule)
        pixels = pixels.to(self.device)
        with autocast(self.device, self.precision):
            whole, patches = self.teacher(pixels if self.order is None else pixels[:, list(self.order)])
            tokens = self.student((pixels - self.mean) / self.std, cores)
        found = losses(tokens, whole, patches)
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = rate
        found.total.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        if wrong := not_finite(float(found.total.detach()), float(norm)):
            raise RequestError(f"{wrong} at step {self.step + 1}: {self.way_on()}")
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        return found

    def way_on(self) -> str:
        """What to do when a step fails. Another rate is another recipe, which cannot go on in this folder."""
        advice = f"lower the rate ({self.recipe.rate})"
        kept = self.out / ENCODER
        return f"{advice} and give another --out; {kept} is kept" if (self.out / STATE).is_file() else advice

    def milestone(self, found: Losses, cores: int) -> None:
        """Logs, keeps the encoder, and writes a checkpoint."""
        values = [float(v.detach()) for v in (found.total, found.global_cosine, found.patch_cosine, found.patch_mse)]
        self.report(f"step {self.step}/{self.recipe.steps}  loss {values[0]:.4f}  patches {1 - values[2]:.4f} alike")
        save_encoder(self.out / ENCODER, self.student, self.card)
        rate = learning_rate(self.step - 1, self.schedule)
        row = [self.step, *(round(v, 5) for v in values), f"{rate:.3g}", cores]
        write_row(self.out / LOG, COLUMNS, row)
        self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Writes everything that a resumed run needs, by a rename."""
        state = {
            "step": self.step,
            "student": self.student.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "recipe": self.recipe.model_dump_json(),
            "images": images_of(self.bands, self.scenes),
        }
        write_checkpoint(self.out / STATE, state)

    def load_checkpoint(self) -> None:
        """Goes on from the checkpoint; RequestError where that is damaged or belongs to another recipe."""
        images = images_of(self.bands, self.scenes)
        state = read_checkpoint(self.out / STATE, self.device, self.recipe.model_dump_json(), images)
        self.student.load_state_dict(state["student"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step = state["step"]


def unlabelled(recipe: DistillRecipe) -> tuple[Scene, ...]:
    """Every image at the recipe's spacing, each a group of its own."""
    spacing = Spacing.square(recipe.spacing.value, recipe.spacing.unit) if recipe.spacing else None
    scenes = []
    for path in list_images(recipe.images):
        view = View.open(open_image(path), spacing)
        scenes.append(Scene(path.stem, str(path), view, Nothing(str(path)), view.size.box))
    return tuple(scenes)


def optimisers(student: VecaEncoder, recipe: DistillRecipe) -> list[torch.optim.Optimizer]:
    """Muon on the blocks' matrices, AdamW on the rest; vectors do not decay.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025), so that one rate serves both.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        if name.startswith("blocks.") and parameter.ndim == 2:
            matrices.append(parameter)
        else:
            (others if parameter.ndim > 1 else vectors).append(parameter)
    groups = [{"params": others, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=recipe.rate)
    if not matrices:
        return [adamw]
    muon = torch.optim.Muon(matrices, lr=recipe.rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, adamw]
