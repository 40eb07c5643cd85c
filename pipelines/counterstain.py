"""Lays a pink second stain over crops of nuclei alone, so that a model of one stain is ready for ordinary H&E."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

EOSIN: Final = ((0.07, 0.99, 0.11), (0.27, 0.79, 0.55))
"""Optical densities of eosin in red, green and blue: Ruifrok and Johnston 2001, and a redder one; mixtures of the two
are drawn."""
HAEMATOXYLIN: Final = (0.65, 0.70, 0.29)
"""Ruifrok and Johnston's; cytoplasm takes up some of it."""
BLUEST: Final = 0.4
"""Largest share of it in what is laid over, beside eosin's 1."""
THICKEST: Final = 0.7
"""Largest mean density of the stain laid over, in green."""
FAINTEST: Final = 0.4
"""The crop's own stain is left at so much of its density at least."""
DARKEST: Final = 2 / 255
"""Light is taken to be at least this share, so that a density is a number."""
OCTAVES: Final = (3, 6, 12, 24, 48, 96)
"""Knots to a side of the noise that tissue is made of, coarse to fine."""


def counterstain(rgb: Tensor, rng: np.random.Generator) -> Tensor:
    """An RGB crop (3, H, W) in 0..1 -> the same under a second stain, with gaps that stay white.

    Densities add up (Beer and Lambert). Where the crop's own stain is thick, nuclei, less of the second one settles.
    """
    own = -rgb.clamp(min=DARKEST).log()  # (3, H, W), optical densities
    floor = np.percentile(own.numpy(), 10, axis=(1, 2))  # what glass and background take away
    gains = np.exp(rng.uniform(-0.3, 0.3, 3)) * math.exp(rng.uniform(math.log(FAINTEST), 0.1))
    own = (own - column(floor * rng.uniform(0, 1))).clamp(min=0) * column(gains)

    height, width = rgb.shape[1:]
    tissue = (1 + rng.uniform(0.1, 0.6) * noise(height, width, rng)).clamp(min=0)
    if rng.random() < 0.5:
        gaps = noise(height, width, rng) - rng.uniform(0.5, 2.5)
        tissue = tissue * torch.sigmoid(-gaps * rng.uniform(5, 40))
    tissue = tissue * rng.uniform(0.05, THICKEST) * torch.exp(-rng.uniform(0, 1.5) * own.mean(0))
    mixture = np.array(EOSIN[0]) + rng.random() * (np.array(EOSIN[1]) - np.array(EOSIN[0]))
    mixture = mixture + BLUEST * rng.random() ** 2 * np.array(HAEMATOXYLIN)
    return torch.exp(-(own + tissue * column(mixture / mixture[1])))


def column(values: NDArray[np.float64]) -> Tensor:
    """Three numbers, one for each band, as (3, 1, 1)."""
    return torch.from_numpy(values.astype(np.float32)).reshape(3, 1, 1)


def noise(height: int, width: int, rng: np.random.Generator) -> Tensor:
    """Noise of many sizes and one direction, like fibres or like clouds: (H, W), mean 0 and deviation 1."""
    side, stretch, rough = round(math.hypot(height, width)), math.exp(rng.uniform(0, 1.4)), rng.uniform(0.4, 0.9)
    total = torch.zeros(side, side)
    for i, knots in enumerate(OCTAVES):
        shape = (round(knots * stretch), round(knots / stretch) + 2)
        coarse = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))[None, None]
        total += rough**i * F.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)[0, 0]
    turned: Any = v2.functional.rotate(total[None], rng.uniform(0, 180), v2.InterpolationMode.BILINEAR)
    cut: Tensor = v2.functional.center_crop(turned, [height, width])[0]
    return (cut - cut.mean()) / cut.std(correction=0).clamp(min=1e-6)
