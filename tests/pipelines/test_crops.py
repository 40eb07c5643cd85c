"""Training crops: the same whoever asks, rare classes found, image and mask never apart."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled import COLORS, VALUES, recipe, write_data
from skimage.color import hed2rgb
from torch.utils.data import DataLoader

from pipelines.augment import Augment, stain_jitter
from pipelines.config import AugmentRecipe
from pipelines.crops import Crops, Places, collate, read_padded
from pipelines.scenes import IGNORE, Scene, class_lookup, find_scenes
from tiling.readers.array import ArraySource

LOOKUP = class_lookup(VALUES.tolist(), ())
FILL = (1.0, 2.0, 3.0)
STILL = AugmentRecipe(zoom=0, rotate=0, color=0, blur=0)
"""Quarter turns and flips remain."""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scene, ...]:
    return find_scenes(recipe(write_data(tmp_path_factory.mktemp("data"))).data)


def crops(scenes: tuple[Scene, ...], how: AugmentRecipe, balance: float = 0.5, seed: int = 0, side: int = 48) -> Crops:
    return Crops(scenes, LOOKUP, FILL, Augment(how, side), balance, seed)


def array_scene(height: int, width: int, *, hole: bool = False) -> Scene:
    """Band 0 is the row, band 1 the column; the mask is the row."""
    y, x = np.mgrid[:height, :width]
    valid = np.ones((height, width), bool)
    if hole:
        valid[1:3, 2:4] = False
    pixels = np.stack([y, x, y], axis=-1).astype(np.float32)
    pixels[~valid] = np.nan
    return Scene.whole("a", "a", ArraySource(pixels, valid=valid), ArraySource(y.astype(np.uint8)))


def middle(target: torch.Tensor) -> set[int]:
    """Classes of the four middle pixels: a crop is centred on one of them, which turns and flips move to another."""
    half = len(target) // 2
    return set(target[half - 1 : half + 1, half - 1 : half + 1].unique().tolist())


def test_item_i_is_the_same_whoever_asks_and_in_whatever_order(scenes: tuple[Scene, ...]) -> None:
    how = AugmentRecipe(color=0.5, stain=0.3, blur=1)
    first, second = crops(scenes, how), pickle.loads(pickle.dumps(crops(scenes, how)))
    taken = {i: first[i] for i in (3, 0, 7)}
    torch.manual_seed(99)
    np.random.seed(99)
    for i in (0, 3, 7):
        assert torch.equal(second[i][0], taken[i][0])
        assert torch.equal(second[i][1], taken[i][1])
    assert not torch.equal(taken[0][0], taken[3][0])
    assert not torch.equal(crops(scenes, how, seed=1)[0][0], taken[0][0])


def test_workers_give_the_same_crops(scenes: tuple[Scene, ...]) -> None:
    data = crops(scenes, AugmentRecipe(color=0.5))
    options = {"batch_size": 2, "sampler": range(2, 6), "collate_fn": collate}
    here = list(DataLoader(data, **options))
    assert len(here) == 2
    for i, (images, targets) in enumerate(here):
        assert torch.equal(images, torch.stack([data[2 + 2 * i][0], data[3 + 2 * i][0]]))
        assert targets.shape == (2, 48, 48)


@pytest.mark.parametrize(
    "how", [STILL, AugmentRecipe(), AugmentRecipe(scale=(0.3, 3), zoom=1, rotate=1, color=1, stain=1, blur=1)]
)
def test_crops_have_their_shape_type_and_known_classes(scenes: tuple[Scene, ...], how: AugmentRecipe) -> None:
    data = crops(scenes, how)
    for i in range(8):
        image, target = data[i]
        assert image.shape == (3, 48, 48)
        assert image.dtype == torch.float32
        assert torch.isfinite(image).all()
        assert target.shape == (48, 48)
        assert target.dtype == torch.int64
        assert set(target.unique().tolist()) <= {0, 1, 2, IGNORE}


@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_image_and_mask_are_turned_zoomed_and_mixed_together(scenes: tuple[Scene, ...], mix: float) -> None:
    data = crops(scenes, AugmentRecipe(scale=(0.8, 2), zoom=1, rotate=1, color=0, blur=0, mix=mix))
    colors = torch.from_numpy(COLORS.astype(np.float32))
    right = []
    for i in range(12):
        image, target = data[i]
        nearest = (image[:, None] - colors.T[:, :, None, None]).norm(dim=0).argmin(dim=0)
        known = target != IGNORE
        right.append((nearest == target)[known].float().mean().item())
    # Only pixels on the borders, which are mixtures, may differ.
    assert np.mean(right) > 0.9


@pytest.mark.parametrize(("balance", "least", "most"), [(1.0, 0.22, 0.5), (0.0, 0.0, 0.06)])
def test_balance_finds_rare_classes(scenes: tuple[Scene, ...], balance: float, least: float, most: float) -> None:
    data = crops(scenes, STILL, balance, side=32)
    found = [2 in middle(data[i][1]) for i in range(100)]
    assert least <= np.mean(found) <= most


def test_a_class_that_is_nowhere_is_never_asked_for(scenes: tuple[Scene, ...]) -> None:
    data = Crops(scenes, class_lookup([0, 4, 9, 77], ()), FILL, Augment(STILL, 32), 1.0, 0)
    assert all(middle(data[i][1]) & {0, 1, 2} for i in range(40))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 30), st.data())
def test_crops_mirror_the_image_beyond_its_edges_and_ignore_what_lies_there(
    height: int, width: int, side: int, data: st.DataObject
) -> None:
    one = array_scene(height, width)
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    top, left = y - side // 2, x - side // 2
    identity = np.arange(256, dtype=np.uint8)
    image, mask = read_padded(one, identity, FILL, top, left, side)
    rows, columns = np.arange(top, top + side), np.arange(left, left + side)
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    assert np.array_equal(mask, np.where(inside, rows[:, None], IGNORE))
    assert np.array_equal(image[..., 0][inside], np.broadcast_to(rows[:, None], (side, side))[inside])
    assert np.array_equal(image[..., 1][inside], np.broadcast_to(columns, (side, side))[inside])
    assert image.shape == (side, side, 3)
    assert (image[..., 0] < height).all()


def test_pixels_without_data_hold_the_fill_and_are_ignored() -> None:
    one = array_scene(6, 8, hole=True)
    image, mask = read_padded(one, np.arange(256, dtype=np.uint8), FILL, 0, 0, 6)
    assert (image[1:3, 2:4] == FILL).all()
    assert (mask[1:3, 2:4] == IGNORE).all()
    assert np.isfinite(image).all()
    data = Crops((one,), np.arange(256, dtype=np.uint8), FILL, Augment(AugmentRecipe(), 32), 0.0, 0)
    assert all(torch.isfinite(data[i][0]).all() for i in range(5))


def test_colour_changes_leave_the_mask_alone(scenes: tuple[Scene, ...]) -> None:
    strong = AugmentRecipe(zoom=0, rotate=0, color=1, stain=1, blur=1)
    assert torch.equal(crops(scenes, strong)[0][1], crops(scenes, STILL)[0][1])
    assert not torch.equal(crops(scenes, strong)[0][0], crops(scenes, STILL)[0][0])


def test_stain_jitter_of_no_strength_changes_nothing() -> None:
    stains = np.random.default_rng(0).uniform(0.005, 0.1, (16, 16, 3))
    rgb = torch.from_numpy(hed2rgb(stains).astype(np.float32)).permute(2, 0, 1)
    still = stain_jitter(rgb, 0.0, np.random.default_rng(0))
    torch.testing.assert_close(still, rgb, atol=1e-3, rtol=0)
    changed = stain_jitter(rgb, 0.3, np.random.default_rng(0))
    assert not torch.allclose(changed, rgb, atol=0.01)
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_a_tint_is_a_gain_for_each_band_and_saturation_leaves_grey_alone() -> None:
    grey = torch.full((3, 8, 8), 0.4)
    tinted = Augment(AugmentRecipe(tint=0.3), 32).cast(grey, np.random.default_rng(0))
    gains = tinted[:, 0, 0] / 0.4
    assert torch.equal(tinted, tinted[:, :1, :1].expand(3, 8, 8))
    assert np.exp(-0.3) <= gains.min() < gains.max() <= np.exp(0.3)
    still = Augment(AugmentRecipe(vivid=3), 32).cast(grey, np.random.default_rng(0))
    torch.testing.assert_close(still, grey, atol=2e-4, rtol=0)  # torchvision's weights of the colours sum to 0.9999
    green = torch.tensor([0.4, 0.5, 0.4]).reshape(3, 1, 1).expand(3, 8, 8)
    spread = [
        float(changed[1].mean() - changed[0].mean())
        for seed in range(40)
        for changed in [Augment(AugmentRecipe(vivid=3), 32).cast(green, np.random.default_rng(seed))]
    ]
    assert 0.1 / 3 <= min(spread) < 0.06 < 0.2 < max(spread) <= 0.3 + 1e-6


def test_other_than_8_bit_rgb_gets_a_gain_for_each_band() -> None:
    pixels = np.random.default_rng(0).normal(2000, 300, (64, 64, 5)).astype(np.float32)
    one = Scene.whole("a", "a", ArraySource(pixels), ArraySource(np.zeros((64, 64), np.uint8)))
    how = AugmentRecipe(zoom=0, rotate=0, color=0.3, blur=0)
    data = Crops((one,), class_lookup([0, 1], ()), (0.0,) * 5, Augment(how, 32), 0.0, 0)
    image, _ = data[0]
    assert image.shape == (5, 32, 32)
    assert torch.isfinite(image).all()
    assert 0.5 * 2000 < image.mean() < 1.6 * 2000


def test_the_scale_is_drawn_evenly_in_and_out() -> None:
    augment = Augment(AugmentRecipe(scale=(0.5, 2), zoom=1, rotate=0), 100)
    sides = [augment.draw_side(np.random.default_rng(i)) for i in range(300)]
    assert 50 <= min(sides) < 56
    assert 180 < max(sides) <= 200
    assert 90 < np.median(sides) < 111


def test_a_large_group_does_not_drown_a_small_one() -> None:
    large, small = array_scene(200, 300), array_scene(40, 50)
    pair = (large, dataclasses.replace(small, name="b", group="b"))
    for balance in (0.0, 1.0):
        data = Crops(pair, np.minimum(np.arange(256), 1).astype(np.uint8), FILL, Augment(STILL, 32), balance, 0)
        rng = np.random.default_rng(0)
        drawn = [data._draw_centre(rng)[0] for _ in range(400)]
        assert 0.4 < np.mean(drawn) < 0.6


def test_all_crops_of_a_batch_have_one_side_and_batches_all_of_them(scenes: tuple[Scene, ...]) -> None:
    augments = [Augment(STILL, side) for side in (32, 48, 64)]
    data = Crops(scenes, LOOKUP, FILL, augments, 0.5, 0, batch=4)
    sides = [[data[4 * step + i][1].shape[0] for i in range(4)] for step in range(24)]
    assert all(len(set(batch)) == 1 for batch in sides)
    assert {batch[0] for batch in sides} == {32, 48, 64}


@pytest.mark.parametrize(("dtype", "scale"), [(np.float32, 1e-3), (np.float32, 1.0), (np.uint16, 2e4)])
def test_noise_is_as_strong_as_the_numbers_differ(dtype: type, scale: float) -> None:
    pixels = (np.random.default_rng(0).random((64, 64, 4)) * scale).astype(dtype)
    change = Augment(AugmentRecipe(zoom=0, rotate=0, color=0, blur=1), 64)
    found = []
    for seed in range(20):
        crop, _ = change(pixels, np.zeros((64, 64), np.uint8), np.random.default_rng(seed))
        found.append(abs(float(crop.std()) / float(pixels.std()) - 1))
    assert 0.001 < max(found) < 1, "blurred or noisy, but neither untouched nor drowned"


def test_few_places_of_a_large_class_are_kept_and_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.crops.PLACES", 500)
    classes = np.zeros((400, 400), np.uint8)
    classes[:, 300:] = 1
    one = Scene.whole("a", "a", ArraySource(np.zeros((400, 400, 3), np.uint8)), ArraySource(classes))
    first, second = (Crops((one,), class_lookup([0, 1], ()), FILL, Augment(STILL, 32), 1.0, 5) for _ in range(2))
    assert first.anywhere.amounts.tolist() == [[100 * 75, 100 * 25]]
    for index, (at, again) in enumerate(zip(first.anywhere.at[0], second.anywhere.at[0], strict=True)):
        assert len(at) == 500
        assert np.array_equal(at, again)
        assert (classes[at[:, 0], at[:, 1]] == index).all()
        assert abs(at[:, 0].mean() - 200) < 20  # of the whole height, not of the first boxes
    other = Crops((one,), class_lookup([0, 1], ()), FILL, Augment(STILL, 32), 1.0, 6)
    assert not np.array_equal(other.anywhere.at[0][0], first.anywhere.at[0][0])


def test_every_place_is_kept_with_the_same_chance_however_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.crops.PLACES", 1000)
    places, rng = Places(), np.random.default_rng(0)
    for part in np.split(np.arange(20_000, dtype=np.int32), [10, 500, 9000]):
        places.add(np.stack([part, part], axis=1), rng)
    assert places.amount == 20_000
    assert len(np.unique(places.at[:, 0])) == 1000
    counts, _ = np.histogram(places.at[:, 0], bins=4, range=(0, 20_000))
    assert (abs(counts - 250) < 50).all()


def test_what_is_thinner_than_the_steps_in_which_classes_are_looked_up_is_found() -> None:
    classes = np.zeros((200, 200), np.uint8)
    classes[102, 20:180] = 1
    one = Scene.whole("a", "a", ArraySource(np.zeros((200, 200, 3), np.uint8)), ArraySource(classes))
    data = Crops((one,), class_lookup([0, 1], ()), FILL, Augment(STILL, 32), 1.0, 0, border=0.5)
    assert data.anywhere.amounts.tolist() == [[2500, 10]]
    assert data.borders.amounts.tolist() == [[0, 10]]
    drawn = [data._draw_centre(np.random.default_rng(i))[1] for i in range(100)]
    assert 0.3 < np.mean(np.array(drawn) == 102) < 0.9
