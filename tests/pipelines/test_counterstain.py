"""A second stain over crops of nuclei: it darkens, leaves nuclei where they are, and shows gaps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.augment import Augment
from pipelines.config import AugmentRecipe
from pipelines.counterstain import counterstain, noise

NUCLEUS, GROUND = (0.31, 0.16, 0.63), (0.78, 0.72, 0.88)
"""Purple on lavender."""


def crop(side: int = 64) -> tuple[Tensor, Tensor]:
    """A dark disc on pale ground: (3, side, side) in 0..1, and where the disc is."""
    y, x = np.ogrid[:side, :side]
    disc = torch.from_numpy((y - side / 2) ** 2 + (x - side / 2) ** 2 < (side / 4) ** 2)
    rgb = torch.where(disc, torch.tensor(NUCLEUS)[:, None, None], torch.tensor(GROUND)[:, None, None])
    return rgb, disc


def stained(seed: int, side: int = 64) -> Tensor:
    return counterstain(crop(side)[0], np.random.default_rng(seed))


def test_the_same_draw_gives_the_same_stain_and_another_one_another() -> None:
    assert torch.equal(stained(1), stained(1))
    assert not torch.equal(stained(1), stained(2))


def test_ground_turns_pink_and_nuclei_stay_darker_in_red() -> None:
    disc = crop()[1]
    results = [stained(seed) for seed in range(60)]
    for result in results:
        assert result.min() > 0
        assert result.max() <= 1
        # Eosin lets red pass: what is dark in red is a nucleus, under any counterstain.
        assert result[0][disc].mean() < result[0][~disc].mean()
    greens = torch.stack([r[1][~disc].mean() / r[0][~disc].mean() for r in results])
    assert greens.min() < 0.7  # strongly pink
    assert greens.max() > 0.9  # hardly at all


def test_gaps_are_white_in_some_crops() -> None:
    ground = ~crop()[1]
    rows = [stained(seed)[:, ground] for seed in range(60)]
    with_gaps = [bool(((r[0] - r[1]) < 0.1).any() and ((r[0] - r[1]) > 0.25).any()) for r in rows]
    assert any(with_gaps)
    assert not all(with_gaps)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (33, 64), (256, 256)])
def test_noise_has_any_size_and_the_same_spread(height: int, width: int) -> None:
    found = noise(height, width, np.random.default_rng(0))
    assert found.shape == (height, width)
    assert torch.isfinite(found).all()
    if height * width > 1:
        assert found.mean().abs() < 1e-4
        assert abs(float(found.std(correction=0)) - 1) < 1e-4


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_crops_stay_pictures(value: float) -> None:
    result = counterstain(torch.full((3, 5, 7), value), np.random.default_rng(0))
    assert result.shape == (3, 5, 7)
    assert torch.isfinite(result).all()
    assert result.min() >= 0
    assert result.max() <= 1


def test_a_recipe_lays_it_over_as_many_crops_as_it_says_and_over_rgb_alone() -> None:
    image, mask = (crop()[0] * 255).byte().permute(1, 2, 0).numpy(), np.zeros((64, 64), np.uint8)
    how = AugmentRecipe(zoom=0, rotate=0, color=0, blur=0, counterstain=0.5)
    plain = AugmentRecipe(zoom=0, rotate=0, color=0, blur=0)

    def changed(pixels: NDArray[Any]) -> list[bool]:
        pairs = ([Augment(r, 64)(pixels, mask, np.random.default_rng(s))[0] for r in (how, plain)] for s in range(40))
        return [not torch.equal(*pair) for pair in pairs]

    assert 10 < sum(changed(image)) < 30
    assert not any(changed(np.concatenate([image, image[..., :1]], axis=2)))
    assert not any(changed(image.astype(np.uint16)))
