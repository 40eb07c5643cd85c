"""Tissue on glass is found, and none of it is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tiling import Box, Georef, Size, Spacing, View, open_image
from tiling.readers.array import ArraySource
from tiling.tissue import TissueMask, tissue_mask

PINK = (215, 130, 180)


def glass(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0, 2, (height, width, 1))
    return np.clip(np.array([242, 241, 243]) + noise, 0, 255).astype(np.uint8)


def test_a_piece_of_tissue_is_found_where_it_lies() -> None:
    pixels = glass(400, 600)
    pixels[100:180, 300:420] = PINK
    found = tissue_mask(open_image(pixels), max_side=150)
    assert found.cell == (4.0, 4.0)
    expected = np.zeros((100, 150), bool)
    expected[25:45, 75:105] = True
    assert np.array_equal(found.mask, expected)
    assert found.fraction == pytest.approx(20 * 30 / 15000)
    assert found.note == "tissue covers 4% of the slide"


@settings(max_examples=40)
@given(
    st.integers(0, 380),
    st.integers(0, 580),
    st.integers(3, 40),
    st.integers(3, 40),
    st.integers(0, 399),
    st.integers(0, 599),
)
def test_every_box_that_touches_tissue_is_kept(ty: int, tx: int, th: int, tw: int, by: int, bx: int) -> None:
    pixels = glass(400, 600)
    pixels[200:260, 300:420] = PINK
    tissue = Box(ty, tx, th, tw).intersect(Box(0, 0, 400, 600))
    assert tissue is not None
    pixels[tissue.slices] = PINK
    found = tissue_mask(open_image(pixels), max_side=150)
    box = Box(by, bx, 17, 23)
    if box.intersect(tissue) is not None:
        assert found.touches(box)


def test_empty_glass_far_from_tissue_is_passed_over() -> None:
    pixels = glass(400, 600)
    pixels[100:180, 300:420] = PINK
    found = tissue_mask(open_image(pixels), max_side=150)
    assert not found.touches(Box(0, 0, 80, 280))
    assert not found.touches(Box(-50, -50, 20, 20))
    assert found.touches(Box(0, 0, 97, 297))
    assert found.touches(Box(90, 290, 1000, 1000))


@pytest.mark.parametrize(
    ("pixels", "why"),
    [
        (glass(200, 300), "do not separate"),
        (np.full((200, 300, 3), 240, np.uint8), "do not separate"),
        (np.full((200, 300, 3), PINK, np.uint8), "do not separate"),
        (np.clip(np.random.default_rng(0).normal(PINK, 25, (200, 300, 3)), 0, 255).astype(np.uint8), "do not separate"),
        (glass(200, 300).astype(np.uint16), "not an RGB slide of 8 bits"),
        (glass(200, 300)[..., 0], "not an RGB slide of 8 bits"),
    ],
)
def test_where_nothing_separates_clearly_all_is_tissue(pixels: NDArray[np.uint8], why: str) -> None:
    found = tissue_mask(open_image(pixels))
    assert found.mask.all()
    assert why in found.note
    assert found.touches(Box(0, 0, 1, 1))
    assert found.touches(Box(199, 299, 1, 1))


def test_pale_tissue_counts_beside_strong_stain() -> None:
    pixels = glass(400, 600)
    pixels[50:200, 50:200] = (150, 60, 130)
    pixels[250:350, 300:500] = (240, 222, 232)
    found = tissue_mask(open_image(pixels), max_side=150)
    assert found.mask[65:85, 80:120].all()


def test_pale_tissue_is_not_taken_for_glass_where_there_is_more_of_it() -> None:
    pixels = glass(400, 600)
    pixels[:, 150:570] = (225, 202, 214)
    pixels[:, 570:590] = (20, 30, 150)  # a pen
    found = tissue_mask(open_image(pixels), max_side=150)
    assert found.mask[:, 38:147].all()
    assert not found.mask[:, :36].any()


def test_black_pigment_counts_and_black_padding_does_not() -> None:
    pixels = glass(400, 600)
    pixels[50:200, 50:200] = PINK
    pixels[250:300, 300:400] = (60, 60, 60)
    pixels[:, 560:] = 0
    found = tissue_mask(open_image(pixels), max_side=150)
    assert found.mask[64:74, 76:99].all()
    assert not found.mask[:, 142:].any()


def test_pixels_that_are_no_data_are_no_tissue() -> None:
    pixels = glass(400, 600)
    pixels[100:180, 300:420] = PINK
    pixels[:, :100] = (200, 0, 0)
    valid = np.ones((400, 600), bool)
    valid[:, :100] = False
    found = tissue_mask(ArraySource(pixels, valid=valid), max_side=150)
    assert not found.mask[:, :24].any()
    assert found.mask[25:45, 75:105].all()


def test_a_real_slide_is_mostly_found_by_its_darkness_too(shared_data: Path) -> None:
    image = open_image(shared_data / "odd/wsi/CMU-1-Small-Region.svs")
    found = tissue_mask(image, max_side=256)
    pixels = image.read(image.levels[0].size.box)
    dark = pixels.mean(axis=-1) < 180
    step = int(found.cell[0])
    shown = np.kron(found.mask, np.ones((step, step), bool))[: dark.shape[0], : dark.shape[1]]
    assert 0.3 < found.fraction < 0.5
    assert shown[dark].mean() > 0.995
    assert not found.touches(Box(1500, 100, 400, 200))


def test_a_map_has_no_glass(shared_data: Path) -> None:
    assert tissue_mask(open_image(shared_data / "odd/geo/cog_webp.tif")).mask.all()


def test_the_dark_field_of_a_fluorescence_slide_is_all_kept(shared_data: Path) -> None:
    found = tissue_mask(open_image(shared_data / "odd/wsi/hamamatsu_test3-DAPI.ndpi"), max_side=256)
    assert found.mask.all()


def test_a_view_is_asked_in_its_own_pixels(shared_data: Path) -> None:
    image = open_image(shared_data / "odd/wsi/CMU-1-Small-Region.svs")
    whole, half = (
        tissue_mask(image, max_side=256),
        tissue_mask(View.open(image, Spacing.square(0.998, "um")), max_side=256),
    )
    assert half.size == Size(1484, 1110)
    assert np.array_equal(whole.mask, half.mask)
    for y in range(0, 2800, 200):
        for x in range(0, 2000, 200):
            assert whole.touches(Box(y, x, 100, 100)) == half.touches(Box(y // 2, x // 2, 50, 50))


def test_large_levels_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = glass(400, 600)
    pixels[100:180, 300:420] = PINK
    source = ArraySource(pixels, georef=Georef.micrometres(Spacing.square(0.5, "um")))
    whole = tissue_mask(source, max_side=150)
    largest = 0
    read = source.read

    def measured(box: Box, level: int = 0) -> NDArray[np.uint8]:
        nonlocal largest
        largest = max(largest, box.pixels)
        return read(box, level)

    monkeypatch.setattr(source, "read", measured)
    monkeypatch.setattr("tiling.tissue._BLOCK", 64)
    parts = tissue_mask(source, max_side=150)
    assert np.array_equal(parts.mask, whole.mask)
    assert largest <= 64 * 64


def test_a_mask_covers_a_view_that_is_no_whole_number_of_cells() -> None:
    mask = np.zeros((3, 4), bool)
    mask[2, 3] = True
    found = TissueMask(mask, (10.0, 10.0), Size(25, 33), "")
    assert found.touches(Box(24, 32, 1, 1))
    assert found.touches(Box(10, 20, 1, 1))
    assert not found.touches(Box(9, 19, 1, 1))
