"""Makes labels that only a wide context tells: whether water lies within a distance, for pixels that are not water.

    python tests/benchmarks/shore.py ../shared/data/aerial/masks runs/shore-masks
    veca train docs/models/shore.yaml --out runs/shore
    veca train docs/models/shore.yaml --out runs/shore-none --set network.overrides.layers=0

The masks are those of the aerial scenes; the new ones have the values 1 water, 2 near water, 3 far from it, 0 unknown.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt

UNKNOWN, WATER, NEAR, FAR = range(4)
REACH = 128
"""Pixels."""


def shore(mask: NDArray[np.uint8], reach: int = REACH) -> NDArray[np.uint8]:
    """(H, W) land cover -> water, near and far; unknown are also pixels whose surroundings the image does not show."""
    water = mask == WATER
    distance = distance_transform_edt(~water) if water.any() else np.full(mask.shape, np.inf)
    inside = np.zeros(mask.shape, np.bool_)
    inside[reach:-reach, reach:-reach] = True
    found = np.where(distance <= reach, NEAR, np.where(inside, FAR, UNKNOWN))
    return np.where(mask == UNKNOWN, UNKNOWN, np.where(water, WATER, found)).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("masks", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    counts = np.zeros(4, np.int64)
    for path in sorted(given.masks.glob("*.png")):
        made = shore(np.asarray(Image.open(path)))
        counts += np.bincount(made.ravel(), minlength=4)
        Image.fromarray(made).save(given.out / path.name)
    names = ("unknown", "water", "near", "far")
    shares = [f"{name} {share:.0%}" for name, share in zip(names, counts / counts.sum(), strict=True)]
    sys.stdout.write(f"{', '.join(shares)}\n")


if __name__ == "__main__":
    main()
