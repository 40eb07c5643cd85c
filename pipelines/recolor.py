"""Gives whole classes another colour in training crops, where the training images show a class in one colour only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

LUMA: Final = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""
OFTEN: Final = 0.5
"""In how many crops a class gets another colour."""
BRIGHTEST: Final = 2.5
"""A class is made up to so many times brighter."""
SOFT: Final = 9
"""Side, in pixels, of the blur at a class's border: a hard edge would give its mask away."""


class Recolor:
    """Pulls the pixels of some classes towards a colour, by a random share, and makes them brighter."""

    def __init__(self, colors: Mapping[int, str], lookup: NDArray[np.uint8]) -> None:
        """`colors` of mask values, like {5: '#8FA65A'}; `lookup` (256) gives the class index of a mask value."""
        self.colors = {int(lookup[value]): _chroma(color) for value, color in colors.items()}

    def __call__(self, pixels: Tensor, classes: Tensor, rng: np.random.Generator) -> Tensor:
        """RGB (3, H, W) in any unit and class indices (H, W) -> RGB of the same shape and unit."""
        for index, chroma in self.colors.items():
            often, share, gain = rng.random(), rng.random(), math.exp(rng.uniform(0, math.log(BRIGHTEST)))
            if often >= OFTEN or not bool((classes == index).any()):
                continue
            luma = torch.tensordot(torch.tensor(LUMA), pixels, dims=1)
            changed = pixels.lerp(luma * chroma, share) * gain
            soft: Any = v2.functional.gaussian_blur((classes == index)[None].float(), [SOFT, SOFT])
            pixels = pixels.lerp(changed, soft)
        return pixels


def _chroma(color: str) -> Tensor:
    """(3, 1, 1): a colour of brightness one."""
    rgb = torch.tensor(list(bytes.fromhex(color[1:])), dtype=torch.float32)
    return (rgb / (rgb @ torch.tensor(LUMA)).clamp(min=1)).reshape(3, 1, 1)
