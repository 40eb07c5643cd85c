"""Random changes to training crops: geometry through MONAI, colour through torchvision, stains through scikit-image."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import torch
from monai.transforms import Compose, RandFlipd, RandGaussianNoised, RandGaussianSmoothd, RandRotate90d, RandRotated
from numpy.typing import NDArray
from skimage.color import hed2rgb, rgb2hed
from torch import Tensor
from torchvision.transforms import v2

from pipelines.config import AugmentRecipe
from pipelines.counterstain import counterstain
from pipelines.recolor import Recolor

NOISE: Final = 8.0
"""Largest deviation of the noise, of RGB's 256 steps."""


class Augment:
    """Changes one crop at a time; the same generator state gives the same change."""

    def __init__(self, recipe: AugmentRecipe, crop: int, lookup: NDArray[np.uint8] | None = None) -> None:
        """`lookup` (256): the class index of each mask value, where the recipe recolours some."""
        self.recipe = recipe
        self.recolor = None if lookup is None or not recipe.recolor else Recolor(recipe.recolor, lookup)
        self.crop = crop
        self.geometry = Compose(
            [
                RandRotated(
                    ("image", "mask"),
                    math.pi / 4,
                    prob=recipe.rotate,
                    mode=("bilinear", "nearest"),
                    padding_mode="reflection",
                ),
                RandRotate90d(("image", "mask"), prob=0.75),
                RandFlipd(("image", "mask"), prob=0.5, spatial_axis=0),
            ]
        )
        # Turned by 45 degrees, a crop's corners reach sqrt(2) further out.
        self.side = round(crop * math.sqrt(2)) if recipe.rotate else crop
        noise = recipe.blur / 2
        self.noise = Compose(
            [
                RandGaussianSmoothd(("image",), (0.3, 1.2), (0.3, 1.2), prob=noise),
                RandGaussianNoised(("image",), prob=noise, std=NOISE),
            ]
        )
        color = recipe.color
        self.jitter = v2.ColorJitter(brightness=color, contrast=color, saturation=color, hue=color * 0.15)

    def draw_side(self, rng: np.random.Generator) -> int:
        """Side of the source region, in pixels, that one crop is made of: smaller regions are zoomed in."""
        low, high = self.recipe.scale
        if rng.random() >= self.recipe.zoom:
            return self.side
        return max(8, round(self.side / math.exp(rng.uniform(math.log(low), math.log(high)))))

    def __call__(self, image: NDArray[Any], mask: NDArray[np.uint8], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """(H, W, bands) and (H, W), square -> float32 (bands, crop, crop) in raw units, and int64 (crop, crop)."""
        pixels = torch.from_numpy(np.ascontiguousarray(image.astype(np.float32))).permute(2, 0, 1)
        classes = torch.from_numpy(np.ascontiguousarray(mask))[None].float()
        pixels = v2.functional.resize(pixels, [self.side, self.side], antialias=True)
        classes = v2.functional.resize(
            classes, [self.side, self.side], interpolation=v2.InterpolationMode.NEAREST_EXACT
        )
        for transform in (self.geometry, self.noise):
            transform.set_random_state(seed=int(rng.integers(2**31)))
        crop = self.geometry({"image": pixels, "mask": classes})
        pixels, classes = (v2.functional.center_crop(_plain(crop[key]), [self.crop] * 2) for key in ("image", "mask"))
        if self.recolor is not None and len(pixels) == 3 and image.dtype == np.uint8:
            pixels = self.recolor(pixels, classes[0], rng)
        pixels = self.colored(pixels, image.dtype, rng)
        # Other numbers than 8-bit ones have any scale: the deviation of a crop's counts as 64 of RGB's steps.
        scale = 1.0 if image.dtype == np.uint8 else float(pixels.std().clamp_min(1e-12)) / 64
        pixels = _plain(self.noise({"image": pixels / scale})["image"]) * scale
        return pixels.contiguous(), classes[0].long()

    def colored(self, pixels: Tensor, dtype: np.dtype[Any], rng: np.random.Generator) -> Tensor:
        """Colour or radiometric changes on float pixels (bands, H, W) in raw units."""
        torch.manual_seed(int(rng.integers(2**31)))
        if len(pixels) == 3 and dtype == np.uint8:
            unit = (pixels / 255).clamp(0, 1)
            if self.recipe.counterstain and rng.random() < self.recipe.counterstain:
                unit = counterstain(unit, rng)
            if self.recipe.stain and rng.random() < 0.8:
                unit = stain_jitter(unit, self.recipe.stain, rng)
            if self.recipe.color and rng.random() < 0.8:
                unit = self.jitter(unit)
            return self.cast(unit, rng) * 255
        gain = 1 + self.recipe.color * (torch.rand(len(pixels), 1, 1) * 2 - 1)
        shift = self.recipe.color * 0.2 * (torch.rand(len(pixels), 1, 1) * 2 - 1) * pixels.std()
        return pixels * gain + shift

    def cast(self, unit: Tensor, rng: np.random.Generator) -> Tensor:
        """A colour cast and another saturation, on RGB (3, H, W) in 0..1."""
        tint, vivid = self.recipe.tint, math.log(self.recipe.vivid)
        if not tint and not vivid:
            return unit
        gains = torch.from_numpy(np.exp(rng.uniform(-tint, tint, 3)).astype(np.float32)).reshape(3, 1, 1)
        saturated = v2.functional.adjust_saturation((unit * gains).clamp(0, 1), math.exp(rng.uniform(-vivid, vivid)))
        return _plain(saturated)


def stain_jitter(rgb: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Scales and shifts haematoxylin, eosin and DAB of an RGB crop (3, H, W) in 0..1.

    Colour deconvolution after Ruifrok and Johnston 2001; jitter after Tellez et al. 2018.
    """
    hed = rgb2hed(rgb.permute(1, 2, 0).numpy())
    gain = rng.uniform(1 - strength, 1 + strength, 3)
    shift = rng.uniform(-strength, strength, 3) * 0.1
    changed = hed2rgb(hed * gain + shift).clip(0, 1)
    return torch.from_numpy(changed.astype(np.float32)).permute(2, 0, 1)


def _plain(value: Any) -> Tensor:
    """MONAI's tensor with metadata -> a plain one."""
    tensor: Tensor = value.as_tensor() if hasattr(value, "as_tensor") else value
    return tensor
