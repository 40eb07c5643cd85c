"""How fast the encoder is on this CPU and what it holds, as ratios within one run. Prints Markdown tables.

    python tests/benchmarks/encoder.py --threads 2
    python tests/benchmarks/encoder.py --threads 2 --only rivals --side 1024 2048

Contestants take turns, and each one's fastest turn counts. Weights are random: they cost what trained ones do.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from plain import PlainVeca
from torch import Tensor

from pipelines.inference import autocast, fast_precision
from veca_core import VecaEncoder, preset
from veca_core.streaming import default_chunk

sys.path.append(str(Path(__file__).parents[1] / "veca_core"))
from peaks import measured_peaks

Turn = Callable[[], object]
CPU = torch.device("cpu")
PRECISION = fast_precision(CPU)
BUDGETS = (8, 16, 32, 64)
SCALE = torch.full((1, 3, 1, 1), 127.0), torch.full((1, 3, 1, 1), 60.0)
PROMISE = 2.5
"""Peak bytes in token states N * D * 4, at most, at N = 65,536."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured and how thoroughly."""

    name: str = "small"
    sides: Sequence[int] = (1024, 2048)
    growth: Sequence[int] = (512, 1024, 2048, 4096)
    """Sides at which the time for a patch is compared."""
    timm_sides: Sequence[int] = (512, 1024)
    peak_side: int = 4096
    product: int = 4096
    """Side of the matrices whose product is the measure."""
    turns: int = 5


def fastest(contestants: Mapping[str, Turn], turns: int) -> dict[str, float]:
    """Seconds of each one's best turn, after one that does not count."""
    best = dict.fromkeys(contestants, float("inf"))
    with torch.inference_mode(), autocast(CPU, PRECISION):
        for turn in range(turns + 1):
            for name, run in contestants.items():
                started = time.perf_counter()
                run()
                if turn:
                    best[name] = min(best[name], time.perf_counter() - started)
    return best


def encoder(name: str) -> VecaEncoder:
    torch.manual_seed(0)
    return VecaEncoder(preset(name)).eval()


def picture(side: int) -> Tensor:
    """(1, 3, side, side) raw pixels."""
    return torch.randint(0, 256, (1, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def normalised(pixels: Tensor) -> Tensor:
    return (pixels.float() - SCALE[0]) / SCALE[1]


def ours(network: VecaEncoder, pixels: Tensor, cores: int = 64, chunk: int | None = None) -> Turn:
    return lambda: network(pixels, cores, chunk=chunk, scale=SCALE, skips=False)


def operations(network: VecaEncoder, side: int, cores: int = 64) -> int:
    """Floating-point operations of a pass: products, and the meetings of patches and cores; two for a multiply-add."""
    c = network.config
    n = (side // c.patch) ** 2
    layer = (n + cores) * (4 * c.dim**2 + 3 * c.dim * c.hidden) + (2 * n * cores + cores**2) * 2 * c.dim
    return 2 * (c.layers * layer + n * c.in_channels * c.patch**2 * c.dim)


def rivals(setting: Setting) -> list[list[str]]:
    """Ours against the plain rendering and against the rate of a matrix product."""
    network = encoder(setting.name)
    plain = PlainVeca(network).eval()
    a = torch.randn(setting.product, setting.product).to(PRECISION)
    rows = [["side", "N", "ours", "plain rendering", "ratio", "ours, GFLOP/s", "matrix product, GFLOP/s", "share"]]
    for side in setting.sides:
        pixels = picture(side)
        images = normalised(pixels)
        contestants: dict[str, Turn] = {
            "ours": ours(network, pixels),
            "plain": lambda images=images: plain(images, 64),  # type: ignore[misc]
            "product": lambda: a @ a,
        }
        best = fastest(contestants, setting.turns)
        rate, top = operations(network, side) / best["ours"] / 1e9, 2 * setting.product**3 / best["product"] / 1e9
        rows.append([
            f"{side} px", f"{(side // 16) ** 2:,}", seconds(best["ours"]), seconds(best["plain"]),
            f"{best['plain'] / best['ours']:.2f}", f"{rate:.0f}", f"{top:.0f}", f"{rate / top:.0%}",
        ])  # fmt: skip
    return rows


def cores(setting: Setting) -> list[list[str]]:
    """Time against the number of cores, at the first side."""
    network, pixels = encoder(setting.name), picture(setting.sides[0])
    best = fastest({str(c): ours(network, pixels, c) for c in BUDGETS}, setting.turns)
    return [["cores", "time", "of that with 64"], *([c, seconds(t), f"{t / best['64']:.2f}"] for c, t in best.items())]


def growth(setting: Setting) -> list[list[str]]:
    """Time against the number of patches: for each of them the same."""
    network = encoder(setting.name)
    best = fastest({str(side): ours(network, picture(side)) for side in setting.growth}, setting.turns)
    each = {side: t / (int(side) // 16) ** 2 for side, t in best.items()}
    first = next(iter(each.values()))
    rows = [["side", "N", "time", "for a patch", "in that at the smallest"]]
    for side, t in best.items():
        n = (int(side) // 16) ** 2
        rows.append([f"{side} px", f"{n:,}", seconds(t), f"{each[side] * 1e6:.1f} us", f"{each[side] / first:.2f}"])
    return rows


def chunks(setting: Setting) -> list[list[str]]:
    """The forward in bounded memory against the unchunked ones: the plain blocks, and ours in one chunk."""
    network = encoder(setting.name)
    rows = [["side", "N", "chunked", "one chunk", "blocks that train", "chunked / fastest unchunked"]]
    for side in setting.sides:
        pixels = picture(side)
        images, n = normalised(pixels), (side // 16) ** 2

        def blocks(images: Tensor = images, grid: int = side // 16) -> object:
            tokens = network.stem(images, None, False, default_chunk("cpu")).tokens.float()
            return network.run(tokens, (grid, grid), 64, grid**2)

        contestants = {
            "chunked": ours(network, pixels), "one": ours(network, pixels, chunk=n), "blocks": blocks,
        }  # fmt: skip
        best = fastest(contestants, setting.turns)
        share = best["chunked"] / min(best["one"], best["blocks"])
        rows.append([f"{side} px", f"{n:,}", *map(seconds, best.values()), f"{share:.2f}"])
    return rows


def timms(setting: Setting) -> list[list[str]]:
    """Ours against a DINOv3 ViT-S of timm, in which all patches meet all, at the same N."""
    network = encoder(setting.name)
    rows = [["side", "N", "ours", "timm's vit_small_patch16_dinov3", "ratio"]]
    for side in setting.timm_sides:
        rival = timm.create_model("vit_small_patch16_dinov3", pretrained=False, img_size=side, num_classes=0).eval()
        pixels = picture(side)
        images = normalised(pixels)
        contestants: dict[str, Turn] = {
            "ours": ours(network, pixels),
            "timm": lambda rival=rival, images=images: rival.forward_features(images),  # type: ignore[misc]
        }
        best = fastest(contestants, 1 if side > 1024 else setting.turns)
        ratio = f"{best['timm'] / best['ours']:.1f}"
        rows.append([
            f"{side} px", f"{(side // 16) ** 2:,}", seconds(best["ours"]), seconds(best["timm"]), ratio,
        ])  # fmt: skip
    return rows


def peak(setting: Setting) -> list[list[str]]:
    """Peak memory of a process beyond pictures and weights, in token states; one layer of `small`, which is enough."""
    number = str(PRECISION).removeprefix("torch.")
    tokens = (setting.peak_side // 16) ** 2
    state = tokens * preset("small").dim * 4
    rows = [["side", "N", "number type", "peak", "in token states", "promised"]]
    for dtype in dict.fromkeys(["float32", number]):
        (measured,) = measured_peaks([(setting.peak_side, dtype, 64, 1, default_chunk("cpu"))])
        cells = (f"{measured / 2**20:.0f} MiB", f"{measured / state:.2f}", f"{PROMISE}")
        rows.append([f"{setting.peak_side} px", f"{tokens:,}", dtype, *cells])
    return rows


SECTIONS: Mapping[str, Callable[[Setting], list[list[str]]]] = {
    "rivals": rivals,
    "cores": cores,
    "growth": growth,
    "chunks": chunks,
    "timm": timms,
    "peak": peak,
}


def seconds(t: float) -> str:
    return f"{t:.2f} s" if t >= 1 else f"{t * 1e3:.0f} ms"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(SECTIONS), nargs="+", default=list(SECTIONS))
    parser.add_argument("--side", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--timm-side", type=int, nargs="+", default=[512, 1024], help="2048 takes minutes")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


def main() -> None:
    given = arguments().parse_args()
    torch.set_num_threads(given.threads)
    setting = Setting(sides=given.side, timm_sides=given.timm_side, turns=given.turns)
    number = str(PRECISION).removeprefix("torch.")
    sys.stdout.write(
        f"torch {torch.__version__}, {given.threads} threads, {number}, `{setting.name}`, 64 cores, batch 1\n"
    )
    for name in given.only:
        sys.stdout.write(f"\n{name}\n\n{markdown(SECTIONS[name](setting))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
