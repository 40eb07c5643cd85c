"""Boxes and sizes obey the laws of rectangles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiling.geometry import Box, Size

BOXES = st.builds(Box, st.integers(-20, 20), st.integers(-20, 20), st.integers(1, 30), st.integers(1, 30))
SIZES = st.builds(Size, st.integers(1, 40), st.integers(1, 40))


def pixels(box: Box) -> set[tuple[int, int]]:
    return {(y, x) for y in range(box.y, box.bottom) for x in range(box.x, box.right)}


@pytest.mark.parametrize("height", [0, -1])
def test_a_size_or_a_box_without_pixels_is_refused_with_its_numbers(height: int) -> None:
    with pytest.raises(ValueError, match=f"{height} x 5"):
        Size(height, 5)
    with pytest.raises(ValueError, match=rf"{height} x 5 at \(1, 2\)"):
        Box(1, 2, height, 5)


@given(BOXES)
def test_a_box_counts_its_pixels_and_rebuilds_from_its_edges(box: Box) -> None:
    assert box.pixels == len(pixels(box)) == box.size.pixels
    assert Box.between(box.y, box.x, box.bottom, box.right) == box


@given(BOXES, BOXES)
def test_the_common_box_holds_exactly_the_common_pixels(one: Box, other: Box) -> None:
    common = one.intersect(other)
    assert (pixels(common) if common else set()) == pixels(one) & pixels(other)
    assert common == other.intersect(one)


@given(BOXES, BOXES)
def test_a_box_contains_another_when_it_has_all_of_its_pixels(one: Box, other: Box) -> None:
    assert one.contains(other) == (pixels(other) <= pixels(one))


@given(SIZES, st.data())
def test_slices_cut_the_box_out_of_an_array(size: Size, data: st.DataObject) -> None:
    y, x = data.draw(st.integers(0, size.height - 1)), data.draw(st.integers(0, size.width - 1))
    box = Box.between(y, x, data.draw(st.integers(y + 1, size.height)), data.draw(st.integers(x + 1, size.width)))
    image = np.arange(size.pixels).reshape(size.height, size.width)
    assert image[box.slices].shape == (box.height, box.width)
    assert image[box.slices][0, 0] == y * size.width + x
    assert image[box.slices][-1, -1] == (box.bottom - 1) * size.width + box.right - 1


@given(BOXES, BOXES)
def test_a_box_relative_to_another_moves_with_its_origin(box: Box, origin: Box) -> None:
    moved = box.relative_to(origin)
    assert pixels(moved) == {(y - origin.y, x - origin.x) for y, x in pixels(box)}


@given(SIZES, st.integers(0, 10))
def test_growing_stops_at_the_edges_of_the_image(size: Size, margin: int) -> None:
    inner = Box(size.height // 2, size.width // 2, 1, 1)
    grown = inner.grow(margin, size)
    assert size.box.contains(grown)
    wanted = Box(inner.y - margin, inner.x - margin, 1 + 2 * margin, 1 + 2 * margin)
    assert grown == wanted.intersect(size.box)


def test_boxes_and_sizes_say_rows_first() -> None:
    assert str(Size(3, 5)) == "3 x 5 px"
    assert str(Box(1, 2, 3, 5)) == "rows 1..4, columns 2..7"
    assert Size(3, 5).box == Box(0, 0, 3, 5)
