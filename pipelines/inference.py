"""From a block of an image to class probabilities: the one path that segmenting, evaluating and every worker share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.ahead import ahead
from pipelines.carry import Carry
from tiling import Box, Grid, Stitcher, View, taper
from veca_core import ModelError, Segmenter


class Tissue(Protocol):
    """Where a slide holds something worth looking at."""

    def touches(self, box: Box) -> bool: ...


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of one block."""

    stitched: Stitcher
    seen: NDArray[np.bool_]
    """(h, w): True where the image has data and a window was run."""

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """(classes, h, w), tapered mean over the windows; zero where nothing was seen."""
        return self.stitched.mean() * self.seen

    def labels(self, values: NDArray[np.uint8], nodata: int) -> NDArray[np.uint8]:
        """(h, w) the value of the most probable class, the first of equals; `nodata` where nothing was seen."""
        return np.where(self.seen, values[self.stitched.argmax()], np.uint8(nodata))


@dataclass(frozen=True, slots=True)
class _Read:
    """A window whose pixels (h, w, bands) wait for the network."""

    window: Box
    pixels: NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Known:
    """A window, and the probabilities (classes, h, w) of the part of it that is known."""

    window: Box
    part: Box
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Predictor:
    """A network with how it is to be run. Windows go through it in the grid's order, always in full batches."""

    network: Segmenter
    cores: int
    batch: int
    device: torch.device
    precision: torch.dtype
    taper: str = "linear"
    bands: tuple[int, ...] | None = None
    """Which band of the image is the model's first, second ...; None: they are in the model's order."""

    def predict_block(
        self, view: View, grid: Grid, block: Box, *, tissue: Tissue | None = None, carry: Carry | None = None
    ) -> Prediction:
        """Runs every window that touches the block and has data (and tissue, where that is asked for).

        With a `carry`, parts of windows that earlier blocks ran are taken from it, and parts for later ones left there.
        """
        stitcher = Stitcher(block, self.network.classes, taper(grid.window, grid.overlap, self.taper))
        seen = view.valid(block)
        if seen.any():
            windows = (w for w in grid.touching(block) if tissue is None or tissue.touches(w))
            for piece in self._answered(self._looked_up(view, windows, block, carry)):
                stitcher.add(piece.window, piece.values, piece.part)
                if carry is not None and piece.part == piece.window:
                    carry.keep(piece.window, piece.values, block)
        if carry is not None:
            carry.forget(block)
        return Prediction(stitcher, seen & stitcher.covered)

    def _looked_up(
        self, view: View, windows: Iterable[Box], block: Box, carry: Carry | None
    ) -> Iterator[_Known | _Read]:
        """What is known of each window, or else its pixels, read ahead; windows without a valid pixel are left out."""
        means = self.network.mean.flatten().tolist()
        fill = means if self.bands is None else [means[self.bands.index(i)] for i in range(len(means))]

        def look(window: Box) -> _Known | _Read | None:
            known = carry.take(window, block) if carry is not None else None
            if known is not None:
                return _Known(window, *known)
            pixels, valid = view.window(window, fill)
            if not valid.any():
                return None
            return _Read(window, pixels if self.bands is None else pixels[..., self.bands])

        return (piece for piece in ahead(look, windows, self.batch + 1) if piece is not None)

    def _answered(self, pieces: Iterable[_Known | _Read]) -> Iterator[_Known]:
        """The pieces in their order, those that were read with what the network says of them, a batch at a time."""
        waiting: list[_Known | _Read] = []
        for piece in pieces:
            waiting.append(piece)
            if sum(isinstance(p, _Read) for p in waiting) == self.batch:
                yield from self._settled(waiting)
                waiting = []
        yield from self._settled(waiting)

    def _settled(self, waiting: Sequence[_Known | _Read]) -> Iterator[_Known]:
        pixels = [piece.pixels for piece in waiting if isinstance(piece, _Read)]
        fresh = iter(self.probabilities(np.stack(pixels))) if pixels else iter(())
        for piece in waiting:
            yield piece if isinstance(piece, _Known) else _Known(piece.window, piece.window, next(fresh))

    def probabilities(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """(n, h, w, bands) raw pixels, n at most the batch -> (n, classes, h, w).

        Short batches are filled up by repeating the last window, so that every window goes through the same
        arithmetic wherever a run was cut: that keeps results equal to the byte.
        """
        missing = self.batch - len(pixels)
        full = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)]) if missing else pixels
        tensor = torch.from_numpy(_torch_ready(full)).to(self.device).permute(0, 3, 1, 2)
        with torch.inference_mode(), autocast(self.device, self.precision):
            logits = self.network(tensor, self.cores)
        if not torch.isfinite(logits).all():
            raise ModelError("the model answered with values that are no numbers; its weights or its card are damaged")
        result: NDArray[np.float32] = logits.float().softmax(dim=1)[: len(pixels)].cpu().numpy()
        return result


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[Any]:
    """Runs matrix products in `precision` where that is not float32."""
    return nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision)


def fast_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def _torch_ready(pixels: NDArray[Any]) -> NDArray[Any]:
    """Unsigned types that torch barely knows become the next larger signed one; byte order becomes native."""
    wider = {np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64, np.dtype(np.uint64): np.float64}
    native = pixels.dtype.newbyteorder("=")
    return np.ascontiguousarray(pixels.astype(wider.get(native, native), copy=False))
