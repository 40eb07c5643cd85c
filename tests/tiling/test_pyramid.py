"""Coarser levels show the most frequent value, whatever the shape of the image and of the blocks."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from label_images import publish, random_labels
from numpy.typing import NDArray

from tiling.geometry import Size
from tiling.labels import NODATA
from tiling.pyramid import level_sizes, mode2

IMAGES = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 2, 255]))


def winner(cell: list[int]) -> int:
    """The rule, one cell at a time: no data with a strict majority, else the most frequent value, the first if tied."""
    if 2 * cell.count(NODATA) > len(cell):
        return NODATA
    data = [value for value in cell if value != NODATA]
    return max(data, key=data.count)


def slow_mode2(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = labels.shape
    cells = [[labels[y : y + 2, x : x + 2].ravel().tolist() for x in range(0, width, 2)] for y in range(0, height, 2)]
    return np.array([[winner(cell) for cell in row] for row in cells], np.uint8)


def test_every_kind_of_cell_gives_its_most_frequent_value() -> None:
    cells = np.array(list(itertools.product([0, 1, 2, 3, NODATA], repeat=4)), np.uint8)
    side_by_side = cells.reshape(-1, 2, 2).transpose(1, 0, 2).reshape(2, -1)
    assert mode2(side_by_side)[0].tolist() == [winner(cell) for cell in cells.tolist()]


@given(IMAGES)
def test_odd_edges_count_the_pixels_that_are_there(labels: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(mode2(labels), slow_mode2(labels))


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ([[255, 255], [255, 1]], 255),
        ([[255, 255], [2, 1]], 2),
        ([[255, 255], [1, 1]], 1),
        ([[255, 1], [2, 2]], 2),
        ([[3, 1], [1, 3]], 3),
        ([[255], [1]], 1),
        ([[255]], 255),
    ],
)
def test_no_data_needs_a_strict_majority_and_ties_go_to_the_first(cell: list[list[int]], value: int) -> None:
    assert mode2(np.array(cell, np.uint8)).tolist() == [[value]]


def test_a_pyramid_in_strips_equals_one_in_a_piece() -> None:
    labels = random_labels(9, 600_001)
    np.testing.assert_array_equal(mode2(labels)[:, :5], slow_mode2(labels[:, :10]))
    np.testing.assert_array_equal(mode2(labels)[2:3, 1000:1200], slow_mode2(labels[4:6, 2000:2400]))


@given(st.builds(Size, st.integers(1, 10**6), st.integers(1, 10**6)))
def test_levels_halve_until_the_longest_side_is_512(size: Size) -> None:
    sizes = level_sizes(size)
    assert sizes[0] == size
    assert max(sizes[-1].height, sizes[-1].width) <= 512
    assert all(max(fine.height, fine.width) > 512 for fine in sizes[:-1])
    for fine, coarse in itertools.pairwise(sizes):
        assert (coarse.height, coarse.width) == (-(-fine.height // 2), -(-fine.width // 2))


@pytest.mark.parametrize(("block", "chunk"), [(300, 50), (512, 512), (1110, 37)])
def test_blocks_of_any_size_give_the_same_pyramid(tmp_path: Path, block: int, chunk: int) -> None:
    values = random_labels(1033, 700, smooth=3)
    labels = publish(tmp_path, values, block=block, chunk=chunk)
    assert len(labels.levels) == 3
    expected = values
    for level in labels.levels:
        np.testing.assert_array_equal(level[:], expected)
        expected = mode2(expected)
