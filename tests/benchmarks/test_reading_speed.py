"""Pixels per second of random 1024 px windows, one thread, against OpenSlide and rasterio on the same file.

All may keep the same bytes of decoded tiles, and take turns window by window.

.venv/bin/python tests/benchmarks/test_reading_speed.py
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import rasterio
import tifffile
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader
from scipy.ndimage import gaussian_filter

from tiling import Box, open_image

CACHE = 64 << 20
"""Bytes of decoded tiles that each program may keep: what ours keeps."""
Read = Callable[[Box], NDArray[Any]]
LAYOUTS: dict[str, dict[str, Any]] = {
    "jpeg 256": {"tile": (256, 256), "compression": "jpeg", "compressionargs": {"level": 85}},
    "jpeg 512": {"tile": (512, 512), "compression": "jpeg", "compressionargs": {"level": 85}},
    "deflate 512": {"tile": (512, 512), "compression": "zlib", "predictor": True},
    "zstd 256": {"tile": (256, 256), "compression": "zstd"},
    "none 512": {"tile": (512, 512)},
}


def picture(side: int) -> NDArray[np.uint8]:
    """(side, side, 3) smooth colours with some noise: what compresses like a photograph."""
    rng = np.random.default_rng(0)
    part = gaussian_filter(rng.normal(size=(min(side, 2048), min(side, 2048), 3)), (6, 6, 0)) * 900 + 150
    part = np.clip(part + rng.normal(scale=4, size=part.shape), 0, 255).astype(np.uint8)
    repeats = -(-side // part.shape[0])
    return np.tile(part, (repeats, repeats, 1))[:side, :side]


@contextmanager
def ours(path: Path) -> Iterator[Read]:
    with open_image(path) as image:
        yield image.read


@contextmanager
def by_openslide(path: Path) -> Iterator[Read]:
    with openslide.OpenSlide(path) as slide:
        slide.set_cache(openslide.OpenSlideCache(CACHE))

        def read(box: Box) -> NDArray[Any]:
            return np.asarray(slide.read_region((box.x, box.y), 0, (box.width, box.height)).convert("RGB"))

        yield read


def opened_by_rasterio(path: Path) -> DatasetReader:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset: DatasetReader = rasterio.open(path)
        return dataset


@contextmanager
def by_rasterio(path: Path) -> Iterator[Read]:
    with rasterio.Env(GDAL_CACHEMAX=CACHE), opened_by_rasterio(path) as dataset:

        def read(box: Box) -> NDArray[Any]:
            window = ((box.y, box.bottom), (box.x, box.right))
            return np.ascontiguousarray(dataset.read(window=window).transpose(1, 2, 0))

        yield read


READERS = {"ours": ours, "OpenSlide": by_openslide, "rasterio": by_rasterio}


def speeds(path: Path, side: int, window: int, count: int) -> dict[str, float]:
    """Megapixels per second of each reader that opens the file; they take turns, so that all meet the same machine."""
    rng = np.random.default_rng(1)
    corners = rng.integers(0, side - window + 1, (count, 2))
    boxes = [Box(int(y), int(x), window, window) for y, x in corners]
    with ExitStack() as stack:
        opened: dict[str, Read] = {}
        for name, reader in READERS.items():
            with suppress(openslide.OpenSlideError):
                opened[name] = stack.enter_context(reader(path))
        seconds = dict.fromkeys(opened, 0.0)
        for box in boxes:
            for name, read in opened.items():
                started = time.perf_counter()
                read(box)
                seconds[name] += time.perf_counter() - started
    return {name: count * window**2 / 1e6 / taken for name, taken in seconds.items()}


def write(folder: Path, layout: str, side: int, georeferenced: bool) -> Path:
    """A TIFF of this layout, as a slide or as a map."""
    path = folder / f"{layout.replace(' ', '-')}-{'map' if georeferenced else 'slide'}.tif"
    place = [(33550, 12, 3, (0.5, 0.5, 0.0), True), (33922, 12, 6, (0.0, 0.0, 0.0, 5e5, 5e6, 0.0), True)]
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)
    extra = {"extratags": [*place, (34735, 3, len(keys), keys, True)]} if georeferenced else {}
    tifffile.imwrite(path, picture(side), photometric="rgb", metadata=None, **LAYOUTS[layout], **extra)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("georeferenced", [False, True])
def test_each_reader_gives_the_same_pixels(tmp_path: Path, layout: str, georeferenced: bool) -> None:
    path = write(tmp_path, layout, 700, georeferenced)
    assert open_image(path).kind == ("raster" if georeferenced else "slide")
    box = Box(130, 260, 300, 310)
    # JPEG's colours depend on how a decoder enlarges them: ours are OpenSlide's for slides, and GDAL's for maps.
    other = by_rasterio if georeferenced or "jpeg" not in layout else by_openslide
    with ours(path) as read, other(path) as oracle:
        assert np.array_equal(read(box), oracle(box))
    assert set(speeds(path, 700, 256, 3)) >= {"ours", "rasterio"}


def main() -> None:
    """Prints a line a file: megapixels per second, and ours in proportion to the faster of the others."""
    with tempfile.TemporaryDirectory() as folder:
        for georeferenced in (False, True):
            for layout in LAYOUTS:
                path = write(Path(folder), layout, 8192, georeferenced)
                found = speeds(path, 8192, 1024, 60)
                best = max(speed for name, speed in found.items() if name != "ours")
                cells = "  ".join(f"{name} {speed:6.1f} Mpx/s" for name, speed in found.items())
                sys.stdout.write(f"{path.stem:18s} {cells}  ours / best other: {found['ours'] / best:.2f}\n")
                path.unlink()


if __name__ == "__main__":
    main()
