"""Trains within a bound of memory: a batch in parts, and activations that are computed again when they are needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from pipelines.device import resident
from pipelines.errors import RequestError

STATES: Final = 3
"""Copies of the weights that the first step adds: gradients, and AdamW's two moments."""
WORK: Final = 4.0
"""What a step holds at once beside what it saves, in sizes of the largest saved tensor: gradients on their way in and
out of a layer, and the copies that a convolution makes of them."""


SCRATCH: Final = 176 * 2**20
"""Bytes that a process comes to hold beside its tensors: compiled kernels, crops on their way, what was freed."""


@dataclass(frozen=True, slots=True)
class Thrift:
    """How a batch goes through the network."""

    parts: int = 1
    """Gradients of so many parts of a batch are added up before a step."""
    again: bool = False
    """The inside of blocks is not kept for the gradients, but computed again: a third more work."""
    predicted: int | None = None
    """Bytes that the process, or its tensors on a GPU, will hold at most."""

    def __str__(self) -> str:
        how = "the whole batch at once" if self.parts == 1 else f"a batch in {self.parts} parts"
        again = ", blocks computed twice" if self.again else ""
        return f"{how}{again}; predicted peak {(self.predicted or 0) / 2**30:.2f} GiB"


@dataclass(slots=True)
class Saved:
    """Bytes that a forward pass keeps for its gradients."""

    outside: int
    """Of blocks."""
    inside: int
    """All blocks."""
    inputs: int
    """What goes into blocks."""
    deepest: int
    """The block that keeps most."""
    largest: int
    """The largest tensor."""

    def total(self, again: bool) -> int:
        """Kept at the end of a pass, and at most after it."""
        kept = self.outside + (self.inputs + self.deepest if again else self.inside)
        return int(kept + WORK * self.largest)


def held_before(device: torch.device) -> int:
    """Bytes that are taken before the first step, and beside tensors: of a GPU's memory, or of the process's."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) + SCRATCH
    if device.type == "mps":
        return torch.mps.current_allocated_memory() + SCRATCH
    return resident() + SCRATCH


def plan_thrift(saved: Saved, weights: int, batch: int, memory: int, held: int) -> Thrift:
    """The quickest way within `memory` bytes, where `saved` is what one crop keeps, of a network of `weights` bytes.

    What gives the same result comes first: blocks are computed twice before a batch is cut. `held`: bytes that are
    taken already. Raises RequestError where even a crop at a time does not fit.
    """
    base = held + STATES * weights
    ways = [
        Thrift(parts, again, base + saved.total(again) * (batch // parts))
        for parts in range(1, batch + 1)
        if batch % parts == 0
        for again in (False, True)
    ]
    for way in ways:
        assert way.predicted is not None
        if way.predicted <= memory:
            return way
    least = min(way.predicted or 0 for way in ways)
    raise RequestError(
        f"training takes {least / 2**30:.2f} GiB at least, a crop at a time, and --memory is {memory / 2**30:.2f} GiB; "
        "give more, or make schedule.crop or the network smaller"
    )


def measure_saved(network: nn.Module, crop: Tensor, cores: int) -> Saved:
    """Runs one crop (1, bands, H, W) through a network, in the precision that is on, and counts."""
    own = {p.untyped_storage().data_ptr() for p in (*network.parameters(), *network.buffers())}
    kept: dict[nn.Module | None, dict[int, int]] = defaultdict(dict)
    inputs: dict[nn.Module, int] = {}
    inside: list[nn.Module] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[inside[0] if inside else None][storage.data_ptr()] = storage.nbytes()
        return tensor

    def enter(block: nn.Module, values: Any) -> None:
        inputs[block] = sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))
        inside.append(block)

    def leave(block: nn.Module, values: Any, result: Any) -> None:  # noqa: ARG001 - a hook's signature
        inside.pop()

    hooks: list[Any] = []
    for block in _blocks(network):
        hooks += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
    with _still(network), saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = network(crop, cores)
        logits.float().softmax(dim=1).square().sum()
    for hook in hooks:
        hook.remove()
    sizes = {block: sum(found.values()) for block, found in kept.items()}
    within = [size for block, size in sizes.items() if block is not None]
    largest = max((size for found in kept.values() for size in found.values()), default=0)
    return Saved(sizes.get(None, 0), sum(within), sum(inputs.values()), max(within, default=0), largest)


def compute_again(network: nn.Module) -> None:
    """Makes every block of a network, in place, forget what it could keep for the gradients."""
    for block in _blocks(network):
        block.forward = partial(_twice, block, block.forward)


def _blocks(network: nn.Module) -> list[nn.Module]:
    """What lies in lists called 'blocks': VECA's layers, stages of timm's encoders, steps of smp's decoders. A block
    within another one is a part of that."""
    found: list[nn.Module] = []
    for name, module in network.named_children():
        if name == "blocks" and isinstance(module, nn.ModuleList | nn.Sequential):
            found += list(module)
        else:
            found += _blocks(module)
    return found


def _twice(block: nn.Module, forward: Any, *values: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*values, **named)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _still(block)

    return checkpoint(forward, *values, use_reentrant=False, context_fn=contexts, **named)


@contextmanager
def _still(network: nn.Module) -> Iterator[None]:
    """Passes meanwhile leave no trace in running means."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
