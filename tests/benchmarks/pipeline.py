"""Segments large images, each in a process of its own, and prints seconds and peak memory, a line of JSON each.

    python tests/benchmarks/pipeline.py --side 8192 16384 --folder /tmp/bench

The model is a convolution of one pixel, so that everything around the network is what is measured: decoding a
JPEG-tiled pyramid, windows of 1,024 px that share 128, six classes, labels at full resolution on disk.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from veca_core import Card, Model, Segmenter, VecaEncoder  # isort: skip - says how torch's threads wait, before torch
import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from veca_core.card import Architecture, Bands, ClassInfo
from veca_core.heads import LinearHead

CLASSES = 6
TILE = 256


class Pointwise(Segmenter):
    """Answers for each pixel from that pixel alone."""

    def __init__(self, bands: Bands) -> None:
        config = Architecture(encoder=SETTINGS).config
        encoder = VecaEncoder(config)
        super().__init__(encoder, LinearHead(config.dim, CLASSES, encoder.stem), bands)
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, CLASSES, 1)
        self.calls = 0

    def forward(self, pixels: Tensor, cores: int | None = None, chunk: int | None = None) -> Tensor:  # noqa: ARG002
        self.calls += 1
        return self.convolution((pixels.float() - self.mean) / self.std)


SETTINGS: dict[str, Any] = {"dim": 48, "layers": 1, "heads": 3, "in_channels": 3}
BANDS = Bands(names=("red", "green", "blue"), mean=(150.0, 120.0, 150.0), std=(50.0, 50.0, 50.0), dtype="uint8")


def pointwise_model(window: int = 1024) -> Model:
    """Costs next to nothing for each pixel."""
    card = Card(
        name="pointwise",
        architecture=Architecture(encoder=SETTINGS, head="linear"),
        classes=tuple(ClassInfo(value=i, name=f"class {i}", color=f"#{40 * i:02X}0080") for i in range(CLASSES)),
        bands=BANDS,
        spacing=None,
        window=window,
    )
    return Model(Pointwise(BANDS).eval(), card, Path("pointwise"), "pointwise")


def write_slide(path: Path, side: int, height: int | None = None) -> Path:
    """A pyramid of JPEG tiles that looks a little like tissue; each level is half of the one before.

    A square, unless a height is given.
    """
    sides = [side]
    flat = (height or side) / side
    while sides[-1] > 1024:
        sides.append(sides[-1] // 2)
    options: dict[str, Any] = {"dtype": np.uint8, "tile": (TILE, TILE), "photometric": "rgb", "compression": "jpeg"}
    options |= {"compressionargs": {"level": 85}, "metadata": None, "maxworkers": 1}
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level, length in enumerate(sides):
            place = {"subifds": len(sides) - 1} if level == 0 else {"subfiletype": 1}
            rows = round(flat * length)
            tiff.write(_tiles(length, level, rows), shape=(rows, length, 3), **options, **place)
    return path


def write_sparse(path: Path, side: int, filled: int = 40) -> Path:
    """One level of tiles of which the file holds only a few, spread over the image."""
    across = -(-side // TILE)
    tissue = next(_tiles(TILE, 0))
    held = set(np.linspace(0, across * across - 1, filled).astype(int).tolist())
    tiles = (tissue if number in held else None for number in range(across * across))
    options: dict[str, Any] = {"dtype": np.uint8, "tile": (TILE, TILE), "photometric": "rgb", "compression": "jpeg"}
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(tiles, shape=(side, side, 3), metadata=None, maxworkers=1, **options)
    return path


def _tiles(side: int, level: int, height: int | None = None) -> Iterator[NDArray[np.uint8]]:
    rng = np.random.default_rng(level)
    grain = rng.integers(-24, 25, (4 * TILE, 4 * TILE, 3)).astype(np.float32)
    for y in range(0, height or side, TILE):
        for x in range(0, side, TILE):
            rows, columns = np.mgrid[y : y + TILE, x : x + TILE].astype(np.float32) * 2.0**level
            waves = np.sin(rows / 97) * np.cos(columns / 61) + np.sin((rows + columns) / 331)
            colour = np.stack([170 + 35 * waves, 120 - 50 * waves, 160 + 20 * waves], axis=-1)
            top, left = rng.integers(0, 3 * TILE, 2)
            yield np.clip(colour + grain[top : top + TILE, left : left + TILE], 0, 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, nargs="+", default=[8192])
    parser.add_argument("--height", type=int, help="where the images are not square")
    parser.add_argument("--folder", type=Path, required=True, help="holds the images, and the result")
    parser.add_argument("--sparse", action="store_true", help="images of which nearly all tiles are missing")
    parser.add_argument("--memory", type=float, default=1.5, help="GiB")
    parser.add_argument("--exports", default="")
    given = parser.parse_args()
    for side in given.side:
        image = given.folder / f"{'sparse-' * given.sparse}{side}{f'x{given.height}' if given.height else ''}.tif"
        if not image.exists():
            given.folder.mkdir(parents=True, exist_ok=True)
            if given.sparse:
                write_sparse(image, side)
            else:
                write_slide(image, side, given.height)
        run = get_context("spawn").Process(
            target=measure, args=(image, given.folder / "out", given.memory, given.exports)
        )
        run.start()
        run.join()
        if run.exitcode:
            sys.exit(run.exitcode)


def measure(image: Path, out: Path, memory: float, exports: str) -> None:
    """Prints what one run took."""
    from pipelines import Options, segment

    wanted = tuple(filter(None, exports.split(",")))
    options = Options(device="cpu", overlap=128, memory=int(memory * 2**30), exports=wanted, overwrite=True)
    model = pointwise_model()
    started = time.perf_counter()
    run = segment(image, model, out, options).run
    said = {
        "side": run.image.size[0],
        "total": round(time.perf_counter() - started, 2),
        "windows_run": model.network.calls,
    }
    said |= run.model_dump(mode="json", include={"seconds", "shares", "windows", "blocks", "peak_memory", "plan"})
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
