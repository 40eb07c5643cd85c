"""What tensors take and give back while a part of a network runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CONVOLUTION = torch.ops.aten.convolution.default
CAST = torch.ops.aten._to_copy.default
RESIZE = torch.ops.aten.upsample_nearest2d.default


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what is allocated and freed while it is on: on a CPU, or as autocast has it on a GPU.

    The one difference is that a GPU's autocast resizes in float32, whatever comes. What autocast makes of the weights
    is left out: it does not grow with the picture.
    """

    def __init__(self, weights: Iterable[Tensor], on_cpu: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_cpu = on_cpu
        self._weights = {weight.untyped_storage()._cdata for weight in weights}
        self._steps: list[int] = []
        self._sizes: dict[int, int] = {}

    def take(self, pixels: int) -> tuple[float, ...]:
        """What was taken (positive) and given back since the last call, in order: bytes per input pixel of so many."""
        steps = tuple(size / pixels for size in self._steps)
        self._steps.clear()
        return steps

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is RESIZE and not self._on_cpu:
            args = (args[0].float(), *args[1:])
        result = func(*args, **(kwargs or {}))
        if func is not CAST or args[0].untyped_storage()._cdata not in self._weights:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self._note(leaf)
        if func is CONVOLUTION and self._on_cpu:
            copies = _copies(args[0], args[1], result)
            self._steps += [*copies, *(-size for size in copies)]
        return result

    def _note(self, tensor: Tensor) -> None:
        """A storage is taken once, and given back when nobody holds it."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._steps.append(storage.nbytes())
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._steps.append(-self._sizes.pop(key))


def _copies(images: Tensor, weight: Tensor, result: Tensor) -> list[int]:
    """Bytes that a CPU's convolution copies: oneDNN turns its input into the layout with all channels of a pixel
    together, and in bfloat16 its output back, where they do not have it (measured on AVX-512 and AMX)."""
    if images.is_contiguous(memory_format=torch.channels_last):
        return []
    back = result.dtype == torch.bfloat16 and not weight.is_contiguous(memory_format=torch.channels_last)
    return [images.nbytes, result.nbytes] if back else [images.nbytes]
