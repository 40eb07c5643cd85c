"""Overlapping windows become one image: exactly, whatever the blocks, and as MONAI does it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray

from tiling import Box, Grid, Size, Stitcher, blocks, taper
from tiling.stitch import TAPERS, linear

Values = NDArray[np.float32]
PROFILES = st.sampled_from(sorted(TAPERS))


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    size = Size(draw(st.integers(1, 90)), draw(st.integers(1, 90)))
    multiple = draw(st.sampled_from([1, 4, 16]))
    window = draw(st.integers(max(multiple, 12), 60))
    return Grid.over(size, window, draw(st.integers(0, window // 2)), multiple)


def answer(window: Box, classes: int = 3) -> Values:
    """What a window says: random, and the same whoever asks."""
    seed = (window.y, window.x, window.height, window.width)
    return np.random.default_rng(seed).random((classes, window.height, window.width), dtype=np.float32)


def stitched(grid: Grid, box: Box, profile: str = "linear") -> Stitcher:
    stitcher = Stitcher(box, 3, taper(grid.window, grid.overlap, profile))
    for window in grid.touching(box):
        stitcher.add(window, answer(window))
    return stitcher


@given(st.integers(1, 200), st.data())
def test_ramps_of_two_neighbours_sum_to_one(window: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, window // 2))
    weights = linear(window, overlap).astype(np.float64)
    sums = np.zeros(3 * window - 2 * overlap)
    for i in range(3):
        start = i * (window - overlap)
        sums[start : start + window] += weights
    inner = sums[overlap : len(sums) - overlap] if overlap else sums
    np.testing.assert_allclose(inner, 1, atol=1e-6)


@given(st.integers(1, 100), st.integers(1, 100), st.integers(0, 50), PROFILES)
def test_every_weight_is_positive_and_symmetric(height: int, width: int, overlap: int, profile: str) -> None:
    weights = taper(Size(height, width), min(overlap, height // 2, width // 2), profile)
    assert weights.shape == (height, width)
    assert weights.dtype == np.float32
    assert (weights > 0).all()
    np.testing.assert_allclose(weights, weights[::-1, ::-1], rtol=1e-6)


def test_an_unknown_taper_is_refused() -> None:
    with pytest.raises(ValueError, match="no taper 'round'; the tapers are linear, gaussian, constant"):
        taper(Size(4, 4), 2, "round")


@settings(deadline=None, max_examples=50)
@given(grids(), PROFILES, st.floats(0, 1, width=32))
def test_a_constant_stays_that_constant(grid: Grid, profile: str, value: float) -> None:
    stitcher = Stitcher(grid.size.box, 2, taper(grid.window, grid.overlap, profile))
    for window in grid:
        stitcher.add(window, np.full((2, window.height, window.width), value, np.float32))
    assert stitcher.covered.all()
    # Products with the smallest of all numbers have fewer digits.
    np.testing.assert_allclose(stitcher.mean(), value, rtol=1e-6, atol=1e-30)


@settings(deadline=None, max_examples=50)
@given(grids(), PROFILES)
def test_what_windows_say_of_their_place_comes_out_at_its_place(grid: Grid, profile: str) -> None:
    stitcher = Stitcher(grid.size.box, 2, taper(grid.window, grid.overlap, profile))
    for window in grid:
        rows, columns = np.mgrid[window.y : window.bottom, window.x : window.right].astype(np.float32)
        stitcher.add(window, np.stack([rows, columns]))
    expected = np.mgrid[: grid.size.height, : grid.size.width]
    np.testing.assert_allclose(stitcher.mean(), expected, atol=1e-4)


@settings(deadline=None, max_examples=30)
@given(grids(), PROFILES, st.integers(11, 70))
def test_cutting_into_blocks_never_changes_a_byte(grid: Grid, profile: str, side: int) -> None:
    whole = stitched(grid, grid.size.box, profile)
    for box in blocks(grid.size, side):
        part = stitched(grid, box, profile)
        assert np.array_equal(part.mean(), whole.mean()[(slice(None), *box.slices)])
        assert np.array_equal(part.argmax(), whole.argmax()[box.slices])


@settings(deadline=None, max_examples=30)
@given(grids(), PROFILES, st.data())
def test_a_part_of_a_window_counts_as_the_window_does_there(grid: Grid, profile: str, data: st.DataObject) -> None:
    whole, box = stitched(grid, grid.size.box, profile), grid.size.box
    stitcher = Stitcher(box, 3, whole.weights)
    for window in grid:
        cut = data.draw(st.integers(0, window.height))
        for top, bottom in itertools.pairwise(sorted({0, cut, window.height})):
            part = Box.between(window.y + top, window.x, window.y + bottom, window.right)
            stitcher.add(window, answer(window)[:, top:bottom], part)
    assert np.array_equal(stitcher.mean(), whole.mean())


def test_windows_that_are_left_out_leave_their_pixels_uncovered() -> None:
    grid = Grid(Size(30, 40), Size(10, 10), 2)
    left_out = Box(0, 0, 10, 10)
    stitcher = Stitcher(grid.size.box, 3, taper(grid.window, grid.overlap))
    for window in grid:
        if window != left_out:
            stitcher.add(window, answer(window))
    assert not stitcher.covered[:8, :8].any()
    assert stitcher.covered[8:].all()
    assert stitcher.covered[:, 8:].all()
    assert (stitcher.mean()[:, :8, :8] == 0).all()


def test_windows_outside_the_block_are_ignored() -> None:
    stitcher = Stitcher(Box(0, 0, 10, 10), 3, taper(Size(10, 10), 0))
    stitcher.add(Box(10, 0, 10, 10), answer(Box(10, 0, 10, 10)))
    assert not stitcher.covered.any()


def test_the_first_of_equal_classes_wins() -> None:
    stitcher = Stitcher(Box(0, 0, 4, 4), 3, taper(Size(4, 4), 0))
    values = np.zeros((3, 4, 4), np.float32)
    values[1:] = 0.5
    stitcher.add(Box(0, 0, 4, 4), values)
    assert (stitcher.argmax() == 1).all()


@pytest.mark.parametrize(("profile", "mode"), [("gaussian", "gaussian"), ("constant", "constant")])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 64), (70, 133)])
@pytest.mark.parametrize("overlap", [0, 8, 16])
def test_it_equals_monai(profile: str, mode: str, height: int, width: int, overlap: int) -> None:
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 5, padding=2))
    model = torch.nn.Sequential(*layers)
    image = torch.rand(1, 3, height, width)
    grid = Grid.over(Size(height, width), 32, overlap)
    stitcher = Stitcher(grid.size.box, 4, taper(grid.window, overlap, profile))
    with torch.no_grad():
        expected = sliding_window_inference(image, (32, 32), 1, model, overlap / 32, mode, sigma_scale=0.125)
        for window in grid:
            stitcher.add(window, model(image[(slice(None), slice(None), *window.slices)])[0].numpy())
    np.testing.assert_allclose(stitcher.mean(), expected[0].numpy(), atol=1e-5)
