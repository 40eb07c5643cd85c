"""What counts as data: the rules one by one, and all of them together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tiling import validity

MASKS = hnp.arrays(np.bool_, (4, 5))


@given(st.lists(MASKS, min_size=1, max_size=4), st.integers(0, 4))
def test_a_pixel_is_data_where_every_mask_says_so(masks: list[validity.Mask], gap: int) -> None:
    together = validity.combine(*masks[:gap], None, *masks[gap:])
    assert np.array_equal(together, np.all(masks, axis=0))


@given(hnp.arrays(np.uint8, (4, 5, 3), elements=st.integers(0, 2)))
def test_nodata_is_where_all_bands_hold_their_value(pixels: np.ndarray) -> None:
    data = validity.differs_from_nodata(pixels, (0, 1, 2))
    assert np.array_equal(data, (pixels != [0, 1, 2]).any(axis=-1))
    assert validity.differs_from_nodata(pixels, (0, None, 2)).all()


@pytest.mark.parametrize("value", [-9999.0, 300.0, 0.5, 1e300])
def test_a_nodata_value_that_bytes_cannot_hold_is_never_met(value: float) -> None:
    assert validity.differs_from_nodata(np.zeros((2, 2, 1), np.uint8), (value,)).all()


def test_a_nodata_value_too_large_for_float32_is_infinity_there() -> None:
    pixels = np.array([[[np.inf], [1]]], np.float32)
    assert validity.differs_from_nodata(pixels, (1e300,)).tolist() == [[False, True]]


@pytest.mark.parametrize("written", [-3.4e38, -3.40282e38, -3.402823e38, float(np.finfo(np.float32).min)])
def test_the_lowest_float_is_no_data_with_however_few_digits_a_header_writes_it(written: float) -> None:
    pixels = np.array([[[np.finfo(np.float32).min], [np.finfo(np.float32).max], [-3e38], [-9999], [0]]], np.float32)
    assert validity.differs_from_nodata(pixels, (written,)).tolist() == [[False, True, True, True, True]]


def test_numbers_are_finite_and_integers_always_are() -> None:
    pixels = np.array([[[1, np.nan], [np.inf, 2], [3, 4]]], np.float32)
    assert validity.finite(pixels).tolist() == [[False, False, True]]
    assert validity.finite(np.zeros((1, 3, 2), np.int16)).all()


def test_only_full_transparency_is_no_data() -> None:
    assert validity.opaque(np.array([[0, 1, 255]], np.uint8)).tolist() == [[False, True, True]]


def test_filled_replaces_what_is_no_data_and_nothing_else() -> None:
    pixels = np.array([[[1.0, 2.0], [np.nan, -9999.0]]], dtype=np.float32)
    valid = np.array([[True, False]])
    assert validity.filled(pixels, valid, (7.25, 8.0)).tolist() == [[[1.0, 2.0], [7.25, 8.0]]]
    assert validity.filled(pixels, np.array([[True, True]]), (0, 0)) is pixels
    whole = validity.filled(np.zeros((1, 2, 1), np.uint8), valid, (126.6,))
    assert whole.dtype == np.uint8
    assert whole.tolist() == [[[0], [127]]]
