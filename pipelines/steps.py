"""One step of a training: the network, its running mean and its optimiser, on a batch, in this process or in many."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import swa_utils

from pipelines.candidate import Candidate
from pipelines.config import TrainRecipe
from pipelines.errors import RequestError
from pipelines.fast import quicken
from pipelines.inference import autocast, fast_precision
from pipelines.losses import SegmentationLoss
from pipelines.optimiser import learning_rate, make_optimiser
from pipelines.scenes import IGNORE
from pipelines.team import ALONE, Team, share_batch_norms
from pipelines.thrift import Saved, Thrift, compute_again, measure_saved


class Learner:
    """What learns. Every process of a team has one, with the same weights after each step."""

    def __init__(self, candidate: Candidate, recipe: TrainRecipe, device: torch.device, team: Team = ALONE) -> None:
        self.candidate, self.schedule, self.device, self.team = candidate, recipe.schedule, device, team
        self.network = candidate.network.to(device)
        if team.size > 1:
            share_batch_norms(self.network)
        ema: Any = swa_utils.get_ema_multi_avg_fn(recipe.schedule.average)  # type: ignore[no-untyped-call]
        self.average = swa_utils.AveragedModel(self.network, multi_avg_fn=ema, use_buffers=True)
        self.optimiser = make_optimiser(self.network, recipe.schedule, candidate.slow)
        self.loss = SegmentationLoss(len(recipe.classes), recipe.loss)
        self.precision = fast_precision(device)
        quicken(self.network, device, self.precision)
        self.keep = recipe.network.keep
        self.first: dict[str, Tensor] = {}
        """The weights of what training started from, where a share of them is kept; a new head has none."""
        self.thrift = Thrift()
        self.called: nn.Module = self.network
        """What a batch goes through: the network, or DDP around it."""
        self.norm = 0.0
        """Of the last step's gradients, before they were clipped."""

    @property
    def size(self) -> str:
        """Of the network, in words."""
        return f"{sum(p.numel() for p in self.network.parameters()) / 1e6:.2f} million parameters"

    def start(self) -> None:
        """With the weights that the recipe starts from."""
        loaded = self.candidate.start()
        self.average.module.load_state_dict(self.network.state_dict())
        if self.keep:
            weights = self.network.state_dict()
            self.first = {name: value.detach().clone() for name, value in weights.items() if name.startswith(loaded)}

    def kept(self) -> nn.Module:
        """What is validated and kept: the running mean, and a share of what training started from."""
        if not self.first:
            return self.average.module
        network = copy.deepcopy(self.average.module)
        for name, value in network.state_dict().items():
            if name in self.first and value.is_floating_point():
                value.lerp_(self.first[name], self.keep)
        return network

    def saved(self, crop: Tensor) -> Saved:
        """What a crop (1, bands, H, W) with all cores keeps for the gradients."""
        self.network.train()
        with autocast(self.device, self.precision):
            return measure_saved(self.network, crop.to(self.device), self.candidate.budgets[-1])

    def settle(self, thrift: Thrift) -> None:
        """Once, before the first step: how batches go through, and who else learns."""
        self.thrift = thrift
        if thrift.again:
            compute_again(self.network)
        if self.team.size > 1:
            self.called = DistributedDataParallel(self.network, find_unused_parameters=self.candidate.idle)

    def learn(self, images: Tensor, target: Tensor, cores: int, step: int) -> float:
        """One optimiser step on this process's share of a batch; returns the loss of the whole one.

        Where that or the gradients' `norm` is no finite number, weights and running mean stay as they were.
        """
        self.network.train()
        if self.candidate.frozen is not None:
            self.candidate.frozen.eval()
        # Draws inside the network (coordinate jitter) are the same after a resume, and in every process.
        torch.manual_seed(self.schedule.seed * 1_000_003 + step)
        rate = learning_rate(step, self.schedule)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimiser.zero_grad(set_to_none=True)
        parts = list(zip(images.chunk(self.thrift.parts), target.chunk(self.thrift.parts), strict=True))
        total = 0.0
        shares = self.shares([classes for _, classes in parts])
        for i, (pixels, classes) in enumerate(parts):
            with self.silent(i + 1 < len(parts)):
                loss = self.loss_of(pixels.to(self.device), classes.to(self.device), cores) * shares[i]
                loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        self.norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), 1.0))
        if not not_finite(total, self.norm):
            self.change_weights(step)
        return total

    def change_weights(self, step: int) -> None:
        """By the gradients; their running mean follows."""
        self.optimiser.step()
        if step + 1 > self.schedule.warmup:
            self.average.update_parameters(self.network)
        else:
            self.average.module.load_state_dict(self.network.state_dict())

    def shares(self, parts: Sequence[Tensor]) -> list[float]:
        """How much each part's loss counts: as much as pixels are known in it, of all that are, in all processes."""
        if len(parts) == 1:
            return [1.0]
        mine = torch.tensor([[int((classes != IGNORE).sum()) for classes in parts]], device=self.device)
        known = self.team.whole_batch(mine).sum(dim=0)
        return [count / max(1, int(known.sum())) for count in known.tolist()]

    def loss_of(self, images: Tensor, target: Tensor, cores: int) -> Tensor:
        """Of all processes' crops together."""
        try:
            with autocast(self.device, self.precision):
                logits = self.called(images, cores)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise RequestError(
                f"a batch of {len(images)} crop of {images.shape[-1]} px leaves one value to normalise by; "
                "make schedule.batch or schedule.crop larger"
            ) from error
        loss: Tensor = self.loss(self.team.whole_batch(logits.float()), self.team.whole_batch(target))
        return loss

    def silent(self, more: bool) -> AbstractContextManager[None]:
        """While more parts follow, processes need not tell each other their gradients."""
        return self.called.no_sync() if more and isinstance(self.called, DistributedDataParallel) else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        return {part: getattr(self, part).state_dict() for part in ("network", "average", "optimiser")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part in ("network", "average", "optimiser"):
            getattr(self, part).load_state_dict(state[part])


def not_finite(loss: float, norm: float) -> str:
    """What became no finite number in a step, the loss or the gradients' norm, in words; empty where both are."""
    for name, value in (("the loss", loss), ("the gradients", norm)):
        if not math.isfinite(value):
            return f"{name} became {value}"
    return ""
