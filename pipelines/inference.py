"""From blocks of an image to class probabilities: the one path that segmenting, evaluating and every worker share."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.ahead import ahead
from pipelines.carry import LIMIT, Carry, Step, Tissue, schedule
from pipelines.progress import Clock, Report, quiet
from tiling import Box, Grid, Stitcher, View, taper
from veca_core import ModelError, Segmenter

READERS: Final = 2
"""Threads that read windows."""
MOST_WAITING: Final = 64
"""Steps that wait for a batch to become full, before it is run as it is."""
MOST_ANSWERS: Final = 4
"""Windows that wait to be stitched, at most."""
ANSWERS: Final = 16 * 2**20
"""Bytes that they may take; one waits whatever it takes."""
STRIP: Final = 2**20
"""Logits that become probabilities at once on a CPU."""
Done = TypeVar("Done")


def windows_ahead(batch: int) -> int:
    """Windows whose pixels are held at once: those that are read or wait to be, and a batch that is run."""
    return 2 * batch + READERS


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of one block."""

    stitched: Stitcher
    seen: NDArray[np.bool_]
    """(h, w): True where the image has data and a window was run."""
    classes: int
    """Of the stitched channels, the first ones; another one is how far two budgets of cores disagree."""

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """(classes, h, w), tapered mean over the windows; zero where nothing was seen."""
        return self.channels()[: self.classes]

    def channels(self, rows: slice = slice(None)) -> NDArray[np.float32]:
        """(channels, h, w) all that was stitched, of some rows or all; zero where nothing was seen."""
        return self.stitched.mean(rows) * self.seen[rows]

    def labels(self, values: NDArray[np.uint8], nodata: int) -> NDArray[np.uint8]:
        """(h, w) the value of the most probable class, the first of equals; `nodata` where nothing was seen."""
        if not self.seen.any():
            return np.full(self.seen.shape, nodata, dtype=np.uint8)
        labels = values[self.stitched.argmax(self.classes)]
        if not self.seen.all():
            labels[~self.seen] = nodata
        return labels


@dataclass(slots=True)
class _Piece:
    """A step on its way: first with the pixels (h, w, bands) of its window, then with what the network says of it."""

    step: Step
    pixels: NDArray[Any] | None = None
    valid: NDArray[np.bool_] | None = None
    """(h, w): where the window has data."""
    values: NDArray[np.float32] | None = None
    """(classes, h, w) probabilities."""


@dataclass(slots=True)
class Predictor:
    """A network with how it is to be run. Windows go through it in the grid's order, always in full batches."""

    network: Segmenter
    cores: int
    batch: int
    """Made smaller where the device turns out to have too little memory."""
    device: torch.device
    precision: torch.dtype
    taper: str = "linear"
    bands: tuple[int, ...] | None = None
    """Which band of the image is the model's first, second ...; None: they are in the model's order."""
    contrast: int | None = None
    """Another budget of cores, that every window is run with too; the half of the sum of what the probabilities of the
    two differ by (total variation, 0..1) is one more channel."""
    stepped_down: Report = quiet
    """Told what is given up because memory ran out."""
    chunk: int | None = None
    """Tokens that the encoder works on at once; None: what suits the device."""

    @property
    def channels(self) -> int:
        """What a window's answer has: the classes, and the disagreement where that is asked for."""
        return self.network.classes + (self.contrast is not None)

    def predict_block(self, view: View, grid: Grid, block: Box, *, tissue: Tissue | None = None) -> Prediction:
        """Runs every window that touches the block and has data there (and tissue, where that is asked for)."""
        (prediction,) = self.predict_blocks(view, grid, [block], lambda _, done: done, tissue=tissue, carry=0)
        return prediction

    def predict_blocks(
        self,
        view: View,
        grid: Grid,
        blocks: Iterable[Box],
        finish: Callable[[Box, Prediction], Done],
        *,
        tissue: Tissue | None = None,
        carry: int = LIMIT,
        clock: Clock | None = None,
    ) -> Generator[Done]:
        """finish(block, prediction) for each block, in order; blocks come row by row, left to right.

        Reading goes on ahead in threads, the network runs in the caller's, stitching and `finish` in one behind it;
        at most a batch and a few windows are on their way. A block's values do not depend on which others are asked
        for; with a `carry` of so many bytes, a window that touches several blocks is run once. `clock` is told how long
        the network ran ('compute'), and how long it had to wait for pixels ('read') or for what comes behind ('write').
        """
        clock = clock or Clock()
        steps = schedule(grid, blocks, self.channels, tissue=tissue, limit=carry)
        weights = taper(grid.window, grid.overlap, self.taper)
        behind = _Behind(self.network.classes, self.channels, weights, finish)
        with closing(ahead(self._reader(view), steps, self.batch + READERS, threads=READERS)) as read:
            answered = self._answered(clock.through("read", read), clock)
            with closing(ahead(behind, answered, self._answers_ahead(grid))) as done:
                yield from (result[0] for result in clock.through("write", done) if result is not None)

    def _answers_ahead(self, grid: Grid) -> int:
        """Windows that may wait to be stitched while a block is written: a few, as far as they are small."""
        size = self.channels * grid.window.height * grid.window.width * np.dtype(np.float32).itemsize
        return max(1, min(MOST_ANSWERS, ANSWERS // size))

    def _reader(self, view: View) -> Callable[[Step], _Piece]:
        """Fetches the pixels of the windows that are to be run; none where a window has no data that is asked for."""
        means = self.network.mean.flatten().tolist()
        fill = means if self.bands is None else [means[self.bands.index(i)] for i in range(len(means))]

        def read(step: Step) -> _Piece:
            if step.window is None or step.part is not None or view.blank(step.window):
                return _Piece(step)
            pixels, valid = view.window(step.window, fill)
            parts = [part.relative_to(step.window).slices for part in (step.common, *step.keep)]
            if not any(valid[part].any() for part in parts):
                return _Piece(step)
            return _Piece(step, pixels if self.bands is None else pixels[..., self.bands], valid)

        return read

    def _answered(self, pieces: Iterable[_Piece], clock: Clock) -> Iterator[_Piece]:
        """The pieces in their order, those that were read with what the network says of them, a batch at a time."""
        waiting: list[_Piece] = []
        for piece in pieces:
            waiting.append(piece)
            fresh = sum(p.pixels is not None for p in waiting)
            if fresh == self.batch or len(waiting) == MOST_WAITING:
                yield from self._settled(waiting, clock)
                waiting = []
        yield from self._settled(waiting, clock)

    def _settled(self, waiting: Sequence[_Piece], clock: Clock) -> Iterator[_Piece]:
        fresh = [piece for piece in waiting if piece.pixels is not None]
        if fresh:
            with clock("compute"):
                values = self.probabilities(np.stack([piece.pixels for piece in fresh if piece.pixels is not None]))
            for piece, answer in zip(fresh, values, strict=True):
                piece.pixels, piece.values = None, answer
        yield from waiting

    def probabilities(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """(n, h, w, bands) raw pixels -> (n, channels, h, w).

        Where the device runs out of memory, and only then, the batch is halved and run again. Raises
        torch.OutOfMemoryError where a single window does not fit.
        """
        while True:
            starts = range(0, len(pixels), self.batch)
            try:
                parts = [self._run(pixels[start : start + self.batch]) for start in starts]
                return parts[0] if len(parts) == 1 else np.concatenate(parts)
            except torch.OutOfMemoryError:
                if self.batch == 1:
                    raise
            # Here, not in the handler: its traceback would hold on to what did not fit.
            self.stepped_down(f"out of memory on {self.device}: batch {self.batch} -> {self.batch // 2}")
            self.batch //= 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _run(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """One pass. A short batch is filled up by repeating its last window, so that every window goes through the
        same arithmetic wherever a run was cut: that keeps results equal to the byte.
        """
        missing = self.batch - len(pixels)
        full = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)]) if missing else pixels
        tensor = torch.from_numpy(_torch_ready(full)).to(self.device).permute(0, 3, 1, 2).contiguous()
        with torch.inference_mode():
            answer = self._softmax(tensor, self.cores)
            if self.contrast is not None:
                other = self._softmax(tensor, self.contrast)
                answer = torch.cat([answer, (answer - other).abs().sum(dim=1, keepdim=True) / 2], dim=1)
            answer = answer[: len(pixels)]
        # A logit that is no number spoils all classes of its pixel, so one channel tells.
        if not answer[:, -1].sum().isfinite():
            raise ModelError("the model answered with values that are no numbers; its weights or its card are damaged")
        result: NDArray[np.float32] = answer.cpu().numpy()
        return result

    def _softmax(self, tensor: torch.Tensor, cores: int) -> torch.Tensor:
        with autocast(self.device, self.precision):
            said = self.network(tensor, cores) if self.chunk is None else self.network(tensor, cores, self.chunk)
        logits: torch.Tensor = said.float()
        if self.device.type != "cpu":
            return logits.softmax(dim=1)
        # In place and some rows at a time: another tensor as large as the logits takes longer, in fresh pages.
        rows = max(1, STRIP * logits.shape[-2] // logits.numel())
        for top in range(0, logits.shape[-2], rows):
            strip = logits[..., top : top + rows, :]
            strip.copy_(strip.softmax(dim=1))
        return logits


class _Behind(Generic[Done]):
    """What comes behind the network, a step at a time: stitches a block, keeps what later ones need, finishes it."""

    def __init__(
        self, classes: int, channels: int, weights: NDArray[np.float32], finish: Callable[[Box, Prediction], Done]
    ) -> None:
        self.classes = classes
        self.channels = channels
        self.weights = weights
        self.finish = finish
        self.carry = Carry()
        self.open: Prediction | None = None
        """The block that is being put together."""

    def __call__(self, piece: _Piece) -> tuple[Done] | None:
        step = piece.step
        if self.open is None:
            seen = np.zeros((step.block.height, step.block.width), dtype=np.bool_)
            self.open = Prediction(Stitcher(step.block, self.channels, self.weights), seen, self.classes)
        if step.window is None:
            complete, self.open = self.open, None
            self.carry.forget(step.block)
            return (self.finish(step.block, complete),)
        if step.part is not None:
            known = self.carry.take(step)
            if known is not None:
                self._add(self.open, step.window, step.part, *known)
        elif piece.values is not None and piece.valid is not None:
            self._add(self.open, step.window, step.window, piece.values, piece.valid)
            self.carry.keep(step, piece.values, piece.valid)
        return None

    @staticmethod
    def _add(into: Prediction, window: Box, part: Box, values: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
        """Adds what a part (classes, h, w) of a window says, and where (h, w) it has data."""
        into.stitched.add(window, values, part)
        common = part.intersect(into.stitched.box)
        if common is not None:
            into.seen[common.relative_to(into.stitched.box).slices] |= valid[common.relative_to(part).slices]


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
