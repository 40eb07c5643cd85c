"""Processes that train one model together, as torchrun starts them: each has its share of every batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from pipelines.errors import RequestError

PATIENCE: Final = timedelta(hours=6)
"""How long a process waits for the others before it gives up."""
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Team:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def share(self, values: Sequence[Value]) -> Sequence[Value]:
        """Every size-th value is this process's."""
        return values[self.rank :: self.size]

    def collected(self, mine: Sequence[Value]) -> list[Value]:
        """What all made of their shares, in the order of the whole."""
        if self.size == 1:
            return list(mine)
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, list(mine))
        total = sum(map(len, parts))
        return [parts[i % self.size][i // self.size] for i in range(total)]

    def whole_batch(self, mine: Tensor) -> Tensor:
        """The parts of all processes, first process first. Gradients are those of a loss that all of them compute."""
        if self.size == 1:
            return mine
        gathered: Tensor = _Gather.apply(mine, self)
        return gathered

    def agreed(self, mine: Value) -> Value:
        """What the first process has."""
        if self.size == 1:
            return mine
        said = [mine]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()


ALONE: Final = Team()


@contextmanager
def joined(environment: Mapping[str, str], device: str = "auto") -> Iterator[Team]:
    """The processes that torchrun tells of in the environment, over NCCL on GPUs and Gloo elsewhere; or this one alone.

    Raises RequestError where it tells of them in part.
    """
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        raise RequestError("WORLD_SIZE is set, but not what else torchrun sets; start as docs/training.md says")
    on_gpus = device != "cpu" and torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(environment.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpus else "gloo", timeout=PATIENCE)
    try:
        yield Team(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def share_batch_norms(network: nn.Module) -> None:
    """Makes every batch normalisation, in place, one over the batches of all processes (torch's own wants a GPU)."""
    for module in network.modules():
        if isinstance(module, BatchNormAct2d):
            module.__class__ = _SharedBatchNormAct
        elif type(module) is nn.BatchNorm2d:
            module.__class__ = _SharedBatchNorm


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: Tensor, team: Team) -> Tensor:
        ctx.team = team
        parts = [torch.empty_like(mine, memory_format=torch.contiguous_format) for _ in range(team.size)]
        dist.all_gather(parts, mine.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # All have the same loss, so its gradient for this part is known here; DDP takes the mean where a sum is meant.
        (gradient,) = gradients
        return gradient.chunk(ctx.team.size)[ctx.team.rank] * ctx.team.size, None


class _Sum(torch.autograd.Function):
    """Over all processes. What each makes of it counts in the gradient."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:  # noqa: ARG004 - torch's signature
        total = mine.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004 - torch's signature
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class _SharedBatchNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        return _normalised(self, input) if self.training else super().forward(input)


class _SharedBatchNormAct(BatchNormAct2d):
    def forward(self, x: Tensor) -> Tensor:
        plain: Any = super()
        out: Tensor = self.act(self.drop(_normalised(self, x))) if self.training else plain.forward(x)
        return out


def _normalised(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """(B, C, H, W) by mean and variance over all processes, which go into the running ones too."""
    values = x.float()
    count = x[:, 0].numel() * dist.get_world_size()
    mean = _Sum.apply(values.sum(dim=(0, 2, 3))) / count
    centred = values - mean.view(1, -1, 1, 1)
    variance = _Sum.apply((centred**2).sum(dim=(0, 2, 3))) / count
    if norm.running_mean is not None and norm.running_var is not None:
        rate = norm.momentum if norm.momentum is not None else 0.1
        with torch.no_grad():
            norm.running_mean.lerp_(mean, rate)
            norm.running_var.lerp_(variance * count / max(1, count - 1), rate)
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked += 1
    out: Tensor = centred * (variance + norm.eps).rsqrt().view(1, -1, 1, 1)
    if norm.affine:
        out = out * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    return out.to(x.dtype)
