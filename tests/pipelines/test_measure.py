"""Losses that are blind to ignored pixels, and scores that equal what counting pixel by pixel gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipelines.config import LossRecipe
from pipelines.losses import SegmentationLoss
from pipelines.measure import REACH, Borders, Calibration, Confusion, Panoptic, interval, iou_of, mean_of
from pipelines.scenes import IGNORE
from pipelines.validation import Measured


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
    measured = Measured(3, [Confusion(3)])
    measured.scenes[0].add(np.array([0, 0, 1], np.uint8), np.array([0, 1, 1], np.uint8))
    score = measured.score(16, ["a", "b", "c"])
    assert score.cores == 16
    assert score.iou == {"a": 0.5, "b": 0.5}
    assert (score.mean_iou, score.mean_dice) == (0.5, 0.6667)
    assert (score.interval, score.boundary_f1, score.ece, score.pq) == (None, None, None, None)
    empty = Measured(2, [Confusion(2)]).score(8, ["a", "b"])
    assert (empty.mean_iou, empty.mean_dice, empty.iou) == (0.0, 0.0, {})


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_borders_equal_what_distances_say(data: st.DataObject) -> None:
    shape = (data.draw(st.integers(2, 12)), data.draw(st.integers(2, 12)))
    truth = data.draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, IGNORE])))
    called = data.draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1])))
    borders = Borders(2)
    borders.add(truth, called)
    known = truth != IGNORE
    for cls in (0, 1):
        edges = []
        for labels in (truth, called):
            inside = [tuple(p) for p in np.argwhere((labels == cls) & known)]
            outside = {tuple(p) for p in np.argwhere((labels != cls) & known)}
            around = ((1, 0), (-1, 0), (0, 1), (0, -1))
            edges.append([p for p in inside if any((p[0] + dy, p[1] + dx) in outside for dy, dx in around)])
        there, said = edges
        met = [
            sum(any(np.hypot(*np.subtract(p, q)) <= REACH for q in b) for p in a)
            for a, b in ((there, said), (said, there))
        ]
        assert borders.total[cls].tolist() == [len(there), len(said)]
        assert borders.found[cls].tolist() == met


def test_a_border_that_is_off_by_more_than_its_reach_is_not_found() -> None:
    truth = np.zeros((30, 40), np.uint8)
    truth[:, 20:] = 1
    for shift, f1 in ((0, 1.0), (REACH - 1, 1.0), (REACH + 2, 0.0)):
        borders = Borders(2)
        borders.add(truth, np.roll(truth, shift, axis=1) if shift else truth)
        called = np.zeros_like(truth)
        called[:, 20 + shift :] = 1
        borders = Borders(2)
        borders.add(truth, called)
        assert borders.f1.tolist() == [f1, f1]


def test_calibration_is_the_gap_between_confidence_and_accuracy() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 200_000).astype(np.float32)
    right = rng.random(confidence.size) < confidence
    truth = np.zeros(confidence.size, np.uint8)
    honest, boastful = Calibration(), Calibration()
    honest.add(truth, (~right).astype(np.uint8), confidence)
    boastful.add(truth, (~right).astype(np.uint8), np.ones_like(confidence))
    assert honest.error < 0.01
    assert boastful.error == pytest.approx(1 - right.mean())
    unknown = Calibration()
    unknown.add(np.full(3, IGNORE, np.uint8), np.zeros(3, np.uint8), np.ones(3, np.float32))
    assert np.isnan(unknown.error)


def test_panoptic_quality_counts_matched_missed_and_invented_objects() -> None:
    objects = np.zeros((20, 30), np.uint16)
    objects[2:8, 2:8] = 700  # found, a row short: 30 of 36 pixels
    objects[10:16, 2:8] = 3  # missed
    objects[2:8, 20:26] = 9  # called with half of it outside: IoU 1/3
    called = np.zeros(objects.shape, bool)
    called[3:8, 2:8] = called[2:8, 23:29] = called[18:20, 28:30] = True
    known = np.ones(objects.shape, bool)
    one = Panoptic()
    one.add(objects, called, known)
    assert (one.matched, one.missed, one.invented) == (1, 2, 2)
    assert one.quality == pytest.approx(30 / 36 / (1 + (2 + 2) / 2))
    known[:, 15:] = False
    two = Panoptic()
    two.add(objects, called, known)
    assert (two.matched, two.missed, two.invented) == (1, 1, 0)
    assert np.isnan(Panoptic().quality)
    full = Panoptic()
    full.add(np.ones((4, 4), np.uint16), np.ones((4, 4), bool), np.ones((4, 4), bool))
    assert full.quality == 1.0


def test_the_interval_holds_the_mean_and_narrows_with_more_images() -> None:
    rng = np.random.default_rng(0)

    def some(count: int) -> np.ndarray:
        hits = rng.integers(40, 100, (count, 2))
        counts = np.zeros((count, 2, 3), np.int64)
        counts[:, [0, 1], [0, 1]] = hits
        counts[:, [0, 1], [1, 0]] = 100 - hits
        return counts

    few, many = some(5), some(200)
    for counts in (few, many):
        low, high = interval(counts)
        assert low <= mean_of(iou_of(counts.sum(axis=0))) <= high
    assert np.ptp(interval(many)) < np.ptp(interval(few)) / 3
    assert interval(many) == interval(many)


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
    loss = SegmentationLoss(3)
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
    assert SegmentationLoss(3)(logits, target).item() == pytest.approx((entropy + dice.mean()).item(), rel=1e-5)


def test_the_focal_loss_is_its_papers_and_without_gamma_cross_entropy(
    batch: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, target = batch
    known = target != IGNORE
    p = logits.softmax(dim=1).permute(0, 2, 3, 1)[known]
    right = p[torch.arange(len(p)), target[known]]
    alone = SegmentationLoss(3, LossRecipe(cross_entropy=0, dice=0, focal=2))
    assert alone(logits, target).item() == pytest.approx(2 * -((1 - right) ** 2 * right.log()).mean().item(), rel=1e-5)
    alone.focal.gamma = 0.0
    entropy = SegmentationLoss(3, LossRecipe(dice=0))(logits, target).item()
    assert alone(logits, target).item() == pytest.approx(2 * entropy, rel=1e-5)


def test_the_boundary_loss_is_how_far_from_a_class_it_is_called() -> None:
    target = torch.zeros(1, 12, 12, dtype=torch.long)
    target[:, :, 6:] = 1
    loss = SegmentationLoss(2, LossRecipe(cross_entropy=0, dice=0, boundary=1))

    def cost(border: int) -> float:
        called = torch.zeros(1, 12, 12, dtype=torch.long)
        called[:, :, border:] = 1
        return loss(40.0 * torch.nn.functional.one_hot(called, 2).permute(0, 3, 1, 2), target).item()

    assert cost(6) < cost(7) < cost(9) < cost(11)
    # Two columns too many are 1 and 2 px from their class, and lose what they gave as 1 and 0 px inside the other one.
    assert cost(8) - cost(6) == pytest.approx((1 + 2 + 0 + 1) / 12 / 2, abs=1e-4)


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "focal", "boundary"])
def test_every_loss_is_blind_to_ignored_pixels(batch: tuple[torch.Tensor, torch.Tensor], name: str) -> None:
    logits, target = batch
    loss = SegmentationLoss(3, LossRecipe(**{"cross_entropy": 0, "dice": 0, name: 0.5}))
    other = logits.clone()
    other[:, :, :3] = 100 * torch.randn(2, 3, 3, 8)
    assert torch.equal(loss(logits, target), loss(other, target))
    assert loss(logits, target) != SegmentationLoss(3, LossRecipe(**{"cross_entropy": 0, "dice": 0, name: 1}))(
        logits, target
    )


def test_a_right_answer_costs_little_and_a_wrong_one_much(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, target = batch
    sure = 20.0 * torch.nn.functional.one_hot(target.where(target != IGNORE, torch.zeros_like(target)), 3)
    sure = sure.permute(0, 3, 1, 2)
    loss = SegmentationLoss(3)
    assert loss(sure, target) < 0.01
    assert loss(sure.roll(1, dims=1), target) > 10


def test_a_batch_without_any_known_pixel_costs_nothing_and_still_has_a_gradient() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = SegmentationLoss(3)(logits, torch.full((1, 4, 4), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()
