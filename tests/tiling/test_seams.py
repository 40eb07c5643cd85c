"""The seam score sees what a window's border does to labels, and nothing where windows agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_images import publish
from numpy.typing import NDArray

from tiling import NODATA, Grid, Size
from tiling.grid import Axis
from tiling.seams import borders, seams


def counted(values: NDArray[np.uint8], grid: Grid) -> tuple[float, float]:
    """The same, pair by pair."""
    edges = []
    for axis in (grid.rows, grid.columns):
        starts = [axis.start(i) for i in range(axis.count)]
        edges.append({*starts, *(s + axis.window for s in starts)})
    pairs: dict[bool, list[bool]] = {True: [], False: []}
    height, width = values.shape
    for y in range(height):
        for x in range(width):
            for other, border in (((y - 1, x), y in edges[0]), ((y, x - 1), x in edges[1])):
                if min(other) >= 0 and NODATA not in (values[y, x], values[other]):
                    pairs[border].append(bool(values[y, x] != values[other]))
    return float(np.mean(pairs[True])), float(np.mean(pairs[False]))


def test_pairs_are_counted_as_one_by_one(tmp_path: Path) -> None:
    values = np.random.default_rng(0).choice(np.array([0, 1, 7, NODATA], np.uint8), (61, 83))
    grid = Grid.over(Size(61, 83), 20, 6)
    found = seams(publish(tmp_path, values), grid)
    assert found is not None
    assert (found.across, found.elsewhere) == pytest.approx(counted(values, grid))


def test_a_step_at_every_border_shows_and_nothing_else_does(tmp_path: Path) -> None:
    grid = Grid.over(Size(60, 60), 20, 0)
    values = np.add.outer(np.arange(60) // 20, np.arange(60) // 20).astype(np.uint8) % 2
    found = seams(publish(tmp_path, values), grid)
    assert found is not None
    assert (found.across, found.elsewhere) == (1, 0)


@pytest.mark.parametrize(("window", "value"), [(64, 1), (20, NODATA)], ids=["one window", "no data"])
def test_without_borders_there_is_no_score(tmp_path: Path, window: int, value: int) -> None:
    values = np.full((60, 60), value, np.uint8)
    assert seams(publish(tmp_path, values), Grid.over(Size(60, 60), window, 0)) is None


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 200), st.integers(2, 60), st.data())
def test_borders_are_those_of_all_windows(length: int, window: int, data: st.DataObject) -> None:
    axis = Axis(length, window, data.draw(st.integers(-(-window // 2), window)))
    begin = data.draw(st.integers(0, length - 1))
    end = data.draw(st.integers(begin + 1, length))
    starts = [axis.start(i) for i in range(axis.count)]
    every = {*starts, *(s + window for s in starts)}
    assert [begin + at for at in borders(axis, begin, end)] == sorted(at for at in every if begin < at < end)
