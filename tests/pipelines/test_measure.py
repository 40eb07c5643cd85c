"""Losses that are blind to ignored pixels, and scores that equal what counting pixel by pixel gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipelines.losses import DiceAndCrossEntropy
from pipelines.measure import Confusion
from pipelines.scenes import IGNORE


def sets(truth: np.ndarray, called: np.ndarray, cls: int) -> tuple[set[int], set[int]]:
    """Places that are of a class, and that were called so."""
    known = [i for i in range(truth.size) if truth.flat[i] != IGNORE]
    return {i for i in known if truth.flat[i] == cls}, {i for i in known if called.flat[i] == cls}


@settings(deadline=None)
@given(st.integers(2, 5), st.integers(1, 4), st.data())
def test_scores_equal_counting_by_hand(classes: int, pieces: int, data: st.DataObject) -> None:
    values = st.sampled_from([*range(classes), IGNORE])
    shape = (pieces, data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5)))
    truth, called = (data.draw(hnp.arrays(np.uint8, shape, elements=values)) for _ in range(2))
    confusion = Confusion(classes)
    for part in zip(truth, called, strict=True):
        confusion.add(*part)
    found = []
    for cls in range(classes):
        there, said = sets(truth, called, cls)
        if not there | said:
            assert np.isnan(confusion.iou[cls])
            continue
        found.append(len(there & said) / len(there | said))
        assert confusion.iou[cls] == pytest.approx(found[-1])
        assert confusion.dice[cls] == pytest.approx(2 * len(there & said) / (len(there) + len(said)))
    assert confusion.mean_iou == pytest.approx(np.mean(found) if found else 0.0)
    assert confusion.counts.sum() == (truth != IGNORE).sum()


def test_a_pixel_that_was_left_without_a_call_is_a_miss() -> None:
    confusion = Confusion(2)
    confusion.add(np.array([[1, 1, 0]], np.uint8), np.array([[1, IGNORE, 0]], np.uint8))
    assert confusion.iou.tolist() == [1.0, 0.5]


def test_a_score_names_its_classes_and_leaves_out_those_that_are_nowhere() -> None:
    confusion = Confusion(3)
    confusion.add(np.array([0, 0, 1], np.uint8), np.array([0, 1, 1], np.uint8))
    score = confusion.score(16, ["a", "b", "c"])
    assert score.cores == 16
    assert score.iou == {"a": 0.5, "b": 0.5}
    assert (score.mean_iou, score.mean_dice) == (0.5, 0.6667)
    empty = Confusion(2).score(8, ["a", "b"])
    assert (empty.mean_iou, empty.mean_dice, empty.iou) == (0.0, 0.0, {})


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    target = torch.randint(0, 3, (2, 8, 8), generator=generator)
    target[:, :3] = IGNORE
    return logits, target


def test_what_is_said_of_ignored_pixels_changes_neither_loss_nor_gradient(
    batch: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, target = batch
    loss = DiceAndCrossEntropy(3)
    other = logits.clone()
    other[:, :, :3] = 100 * torch.randn(2, 3, 3, 8)
    assert torch.equal(loss(logits, target), loss(other, target))
    logits.requires_grad_()
    loss(logits, target).backward()
    assert logits.grad is not None
    assert (logits.grad[:, :, :3] == 0).all()
    assert (logits.grad[:, :, 3:] != 0).any()


def test_the_loss_is_cross_entropy_plus_dice_over_the_batch(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target = batch
    known = target != IGNORE
    p = logits.softmax(dim=1).permute(0, 2, 3, 1)[known]
    entropy = -p[torch.arange(len(p)), target[known]].log().mean()
    hot = torch.nn.functional.one_hot(target[known], 3)
    dice = 1 - (2 * (p * hot).sum(0) + 1) / (p.sum(0) + hot.sum(0) + 1)
    assert DiceAndCrossEntropy(3)(logits, target).item() == pytest.approx((entropy + dice.mean()).item(), rel=1e-5)


def test_a_right_answer_costs_little_and_a_wrong_one_much(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, target = batch
    sure = 20.0 * torch.nn.functional.one_hot(target.where(target != IGNORE, torch.zeros_like(target)), 3)
    sure = sure.permute(0, 3, 1, 2)
    loss = DiceAndCrossEntropy(3)
    assert loss(sure, target) < 0.01
    assert loss(sure.roll(1, dims=1), target) > 10


def test_a_batch_without_any_known_pixel_costs_nothing_and_still_has_a_gradient() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = DiceAndCrossEntropy(3)(logits, torch.full((1, 4, 4), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()
