"""Predicted against measured peaks of memory over a grid of passes, each in a process of its own. Prints Markdown.

    python tests/benchmarks/memory.py                     the encoder, then whole networks
    python tests/benchmarks/memory.py --side 1024 2048    squares of so many pixels only

Measured is the largest resident size during a pass beyond what was resident before it: pixels and weights are in both.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from pipelines.gauge import PASSES
from veca_core import build, preset
from veca_core.card import Architecture, Bands
from veca_core.memory import RESIDENT, encoder_bytes, forward_bytes
from veca_core.model import network_size
from veca_core.prepared import prepared
from veca_core.streaming import attention_kind, default_chunk

sys.path.append(str(Path(__file__).parents[1] / "veca_core"))
from apart import apart

LITE = "tu-tf_efficientnet_lite0"
CLASSES = 5


@dataclass(frozen=True, slots=True)
class Pass:
    """What is run: one layer of `small`, which needs what twelve need."""

    side: int
    cores: int = 64
    batch: int = 1
    dtype: str = "float32"
    bands: int = 3
    stem: str = "patch"
    head: str = ""
    """'' for the encoder alone."""
    chunk: int = default_chunk("cpu")


def measure(what: Pass) -> tuple[int, int]:
    """Measured and predicted bytes."""
    fields = {key: getattr(preset("small"), key) for key in preset("small").__dataclass_fields__}
    bands = Bands(names=tuple(map(str, range(what.bands))), mean=(100.0,) * what.bands, std=(60.0,) * what.bands)
    encoder = {**fields, "layers": 1, "cores": max(64, what.cores), "in_channels": what.bands}
    model = build(Architecture(encoder=encoder, stem=what.stem, head=what.head or "linear"), bands, CLASSES)
    model = model.eval().to(memory_format=torch.channels_last)  # as `load_model` does
    size, config = network_size(model), model.encoder.config
    pixels = torch.ones(what.batch, what.bands, what.side, what.side, dtype=torch.uint8)
    number = getattr(torch, what.dtype)

    def run(pixels: torch.Tensor) -> None:
        if what.head:
            model(pixels, what.cores, what.chunk).softmax(dim=1)
        else:
            model.encoder(pixels, what.cores, what.chunk, (model.mean, model.std), skips=False)

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=number == torch.bfloat16):
        prepared(model.encoder)
        run(torch.ones(1, what.bands, 64, 64, dtype=torch.uint8))  # loads the library's code
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # what is free and kept would hide what is used next
        before = psutil.Process().memory_info().rss
        for _ in range(PASSES):
            run(pixels)
    measured = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    attention = attention_kind("cpu", what.cores)
    if what.head:
        predicted = forward_bytes(
            size, what.side, what.side, what.batch, what.cores, what.chunk, number.itemsize, attention
        )
    else:
        predicted = encoder_bytes(
            (what.side // 16) ** 2, config.dim, config.hidden, config.heads, what.cores, what.batch, what.chunk,
            number.itemsize, attention, values=what.bands * config.patch**2,
        )  # fmt: skip
    return measured, predicted + RESIDENT


def encoders(sides: Sequence[int]) -> list[Pass]:
    axes = itertools.product(sides, (8, 64), (1, 4), ("float32", "bfloat16"), (1, 3, 8))
    return [Pass(side, cores, batch, dtype, bands) for side, cores, batch, dtype, bands in axes]


def networks(sides: Sequence[int]) -> list[Pass]:
    parts = (("patch", "linear"), ("patch", "unet"), (LITE, "linear"), (LITE, "unet"))
    axes = itertools.product([s for s in sides if s <= 2048], (1, 4), ("float32", "bfloat16"), parts)
    passes = [Pass(side, 64, batch, dtype, 3, stem, head) for side, batch, dtype, (stem, head) in axes]
    return [p for p in passes if p.side * p.batch <= 4096] + [replace(passes[0], bands=b, side=1024) for b in (1, 8)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--only", choices=["encoder", "networks"], nargs="+", default=["encoder", "networks"])
    given = parser.parse_args()
    torch.set_num_threads(1)  # before a copy is made: threads are not copied
    for name, passes in (("encoder", encoders(given.side)), ("networks", networks(given.side))):
        if name not in given.only:
            continue
        sys.stdout.write("\n| side | N | stem, head | bands | cores | batch | type | measured | predicted | ratio |\n")
        sys.stdout.write("|---" * 10 + "|\n")
        for p in passes:
            measured, predicted = apart(measure, p)
            parts = f"{p.stem}, {p.head or '-'}"
            cells = (p.side, f"{(p.side // 16) ** 2:,}", parts, p.bands, p.cores, p.batch, p.dtype)
            sizes = f"{measured / 2**20:.0f} MiB | {predicted / 2**20:.0f} MiB | {predicted / measured:.2f}"
            sys.stdout.write(f"| {' | '.join(map(str, cells))} | {sizes} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
