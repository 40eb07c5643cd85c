"""Colours over a picture: exact at both ends, between them everywhere else."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app import render
from pipelines.view import PAPER

COLORS = st.dictionaries(st.integers(0, 254), st.tuples(*[st.integers(0, 255)] * 3), max_size=5)


@given(seed=st.integers(0, 99), colors=COLORS, opacity=st.floats(0, 1))
def test_a_painted_pixel_lies_between_picture_and_colour_and_others_stay(
    seed: int, colors: dict[int, render.Color], opacity: float
) -> None:
    random = np.random.default_rng(seed)
    rgb = random.integers(0, 256, (6, 7, 3), np.uint8)
    values = random.choice(np.array([*colors, 255], np.uint8), (6, 7))
    painted = render.overlay(rgb, values, colors, opacity)
    for value, color in colors.items():
        expected = rgb[values == value] * (1 - opacity) + np.array(color) * opacity
        assert np.abs(painted[values == value] - expected).max(initial=0) <= 0.51
    assert np.array_equal(painted[values == 255], rgb[values == 255])


@given(seed=st.integers(0, 99), colors=COLORS)
def test_the_ends_of_the_slider_are_exact(seed: int, colors: dict[int, render.Color]) -> None:
    random = np.random.default_rng(seed)
    rgb = random.integers(0, 256, (6, 7, 3), np.uint8)
    values = random.choice(np.array([*colors, 255], np.uint8), (6, 7))
    assert np.array_equal(render.overlay(rgb, values, colors, 0), rgb)
    opaque = render.overlay(rgb, values, colors, 1)
    assert all((opaque[values == value] == color).all() for value, color in colors.items())


def test_without_a_picture_there_is_paper() -> None:
    painted = render.overlay(None, np.array([[1, 2, 255]], np.uint8), {1: (9, 8, 7)}, 1)
    assert painted.tolist() == [[[9, 8, 7], [PAPER] * 3, [PAPER] * 3]]


def test_an_opacity_beyond_its_ends_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0 to 1, got 45"):
        render.overlay(None, np.zeros((1, 1), np.uint8), {}, 45)


@given(height=st.integers(1, 50), width=st.integers(1, 50))
def test_an_enlarged_picture_has_square_pixels_and_fits(height: int, width: int) -> None:
    picture = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    large = render.enlarge(picture, 40, 60)
    side = large.shape[0] // height
    assert large.shape == (side * height, side * width, 3)
    assert side == 1 or (large.shape[0] <= 40 and large.shape[1] <= 60)
    assert (side + 1) * height > 40 or (side + 1) * width > 60
    assert np.array_equal(large[side - 1 :: side, ::side], picture)


def test_png_is_read_back_by_another_reader() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(render.png(picture)))), picture)
