"""Peak memory of exports while a mask grows, in a process of its own. Flat is asserted; the figures are printed.

.venv/bin/python -m pytest tests/benchmarks/test_export_memory.py -s               a small mask, as a test
.venv/bin/python tests/benchmarks/test_export_memory.py 20000 [EXPORT ...]         a mask of 20,000 x 20,000 px
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from affine import Affine

from tiling.canvas import Canvas
from tiling.exports import EXPORTS
from tiling.geometry import Box, Size
from tiling.georef import Georef, Spacing
from tiling.labels import LabelClass, Labels

EXPORTED = ("mask", "areas", "regions", "geopackage", "geoparquet")
CELL = 63
"""Side of the square that holds one blob: 100,000 of them fill 20,000 x 20,000 px."""
GROWTH = 40 << 20
"""Bytes by which the peak may grow while the mask grows ninefold."""


def blobs(box: Box) -> np.ndarray:
    """(h, w) round blobs of two classes on background, each of its own size."""
    y, x = np.mgrid[box.y : box.bottom, box.x : box.right]
    number = (y // CELL) * 7919 + (x // CELL) * 104729
    radius = 12 + number % 17
    inside = (y % CELL - CELL // 2) ** 2 + (x % CELL - CELL // 2) ** 2 < radius**2
    return np.where(inside, 1 + number % 2, 0).astype(np.uint8)


def make(folder: Path, side: int, kind: str = "slide") -> Labels:
    """A finished label image of `side` pixels squared."""
    slide = Georef.micrometres(Spacing.square(0.5, "um"))
    place = slide if kind == "slide" else Georef(Affine(0.5, 0, 4e5, 0, -0.5, 5e6), "crs", "EPSG:32633")
    classes = [LabelClass(i, n, (80 * i, 0, 200)) for i, n in enumerate(("background", "round", "rounder"))]
    with Canvas.create(
        folder / "labels.zarr.partial", size=Size(side, side), block=2048, chunk=512, classes=classes,
        georef=place, kind=kind, name="blobs", fingerprint="blobs",  # type: ignore[arg-type]
    ) as canvas:  # fmt: skip
        for box in canvas.blocks:
            canvas.write(box, blobs(box))
        return canvas.publish(folder / "labels.zarr")


def peak() -> int:
    """Largest resident size of this process, in bytes, since it started: not its parent's, as getrusage has it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def export(name: str, folder: str) -> None:
    """Runs one export in this process and prints what it took."""
    labels = Labels.open(Path(folder) / "labels.zarr")
    before = peak()
    started = time.perf_counter()
    EXPORTS[name](labels, Path(folder), None, {})
    print(json.dumps({"peak": peak(), "before": before, "seconds": time.perf_counter() - started}))  # noqa: T201


def measured(name: str, folder: Path) -> dict[str, float]:
    """What an export took in a process of its own: bytes and seconds."""
    command = [sys.executable, __file__, "--export", name, str(folder)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def show(side: int, names: tuple[str, ...]) -> dict[str, float]:
    """Prints a line an export; peak bytes by export."""
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), side)
        count = round((side / CELL) ** 2)
        sys.stdout.write(f"\n{side} x {side} px, about {count:,} regions\n")
        for name in names:
            took = measured(name, Path(folder))
            peaks[name] = took["peak"]
            sys.stdout.write(
                f"{name:12s} peak {took['peak'] / 2**20:7.0f} MiB ({took['before'] / 2**20:.0f} MiB before), "
                f"{took['seconds']:6.1f} s\n"
            )
            sys.stdout.flush()
    return peaks


def test_memory_does_not_grow_with_the_mask() -> None:
    small, large = (show(side, ("regions",)) for side in (2048, 6144))
    assert large["regions"] - small["regions"] < GROWTH


if __name__ == "__main__":
    if sys.argv[1] == "--export":
        export(*sys.argv[2:])
    else:
        show(int(sys.argv[1]), tuple(sys.argv[2:]) or EXPORTED)
