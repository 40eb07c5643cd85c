"""Recoloured classes: the right pixels, towards the right colour, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from labelled import recipe, write_data
from pydantic import ValidationError

from pipelines.config import TrainRecipe
from pipelines.recolor import BRIGHTEST, Recolor
from pipelines.scenes import class_lookup

LOOKUP = class_lookup([2, 7], ())
GREEN = "#00FF00"


def changed(seed: int, recolor: Recolor) -> torch.Tensor:
    """A grey crop whose right half is class 7 (index 1)."""
    classes = torch.zeros(40, 40, dtype=torch.int64)
    classes[:, 20:] = 1
    return recolor(torch.full((3, 40, 40), 60.0), classes, np.random.default_rng(seed))


def test_only_the_named_class_changes_and_turns_to_its_colour() -> None:
    results = [changed(seed, Recolor({7: GREEN}, LOOKUP)) for seed in range(40)]
    for result in results:
        torch.testing.assert_close(result[:, :, :10], torch.full((3, 40, 10), 60.0))
        red, green, blue = result[:, 20, 30]
        assert torch.isclose(red, blue)
        assert green >= red - 1e-3
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        assert 60 - 1e-3 <= luma <= 60 * BRIGHTEST + 1e-3
    still = sum(bool(torch.isclose(r, torch.tensor(60.0), atol=1e-3).all()) for r in results)
    assert 8 < still < 32
    assert any(r[1, 20, 30] > 2 * r[0, 20, 30] for r in results)


def test_the_border_of_a_class_stays_soft() -> None:
    strongest = max((changed(seed, Recolor({7: GREEN}, LOOKUP)) for seed in range(20)), key=lambda r: float(r[1].max()))
    steps = strongest[1, 20].diff().abs()
    assert steps.max() < (strongest[1].max() - 60) / 3


def test_a_recipe_that_recolours_what_is_no_class_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    content = recipe(write_data(tmp_path_factory.mktemp("data"))).model_dump(mode="json")
    with pytest.raises(ValidationError, match=r"augment.recolor names the mask values \[200\], which are no classes"):
        TrainRecipe.model_validate(content | {"augment": {"recolor": {200: GREEN}}})
    with pytest.raises(ValidationError, match="recolor"):
        TrainRecipe.model_validate(content | {"augment": {"recolor": {200: "green"}}})
