"""One grid over the whole image: every pixel seen, nothing moved by how the image is cut."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiling import Box, Grid, Size, blocks
from tiling.grid import Axis

LENGTHS = st.integers(1, 300)


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    window = draw(st.integers(1, 80))
    return Axis(draw(LENGTHS), window, draw(st.integers(math.ceil(window / 2), window)))


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    size = Size(draw(st.integers(1, 120)), draw(st.integers(1, 120)))
    multiple = draw(st.sampled_from([1, 4, 16]))
    window = draw(st.integers(max(multiple, 8), 90))
    return Grid.over(size, window, draw(st.integers(0, window // 2)), multiple)


def inside(draw: st.DataObject, size: Size) -> Box:
    top, left = draw.draw(st.integers(0, size.height - 1)), draw.draw(st.integers(0, size.width - 1))
    return Box.between(
        top, left, draw.draw(st.integers(top + 1, size.height)), draw.draw(st.integers(left + 1, size.width))
    )


@given(axes())
def test_windows_cover_an_axis_without_gaps_a_stride_apart(axis: Axis) -> None:
    starts = [axis.start(i) for i in range(axis.count)]
    assert starts[:-1] == [i * axis.stride for i in range(axis.count - 1)]
    assert starts == sorted(set(starts))
    assert all(later - earlier <= axis.stride for earlier, later in itertools.pairwise(starts))
    assert starts[0] == 0
    if axis.length > axis.window:
        assert starts[-1] + axis.window == axis.length
    else:
        assert starts == [0]


@given(axes())
def test_there_are_no_more_windows_than_needed(axis: Axis) -> None:
    needed = 1 if axis.length <= axis.window else 1 + math.ceil((axis.length - axis.window) / axis.stride)
    assert axis.count == needed


@given(axes(), st.data())
def test_the_windows_that_touch_an_interval_are_all_of_them_and_no_others(axis: Axis, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, axis.length - 1))
    end = data.draw(st.integers(begin + 1, axis.length))
    brute = [i for i in range(axis.count) if axis.start(i) < end and axis.start(i) + axis.window > begin]
    assert list(axis.touching(begin, end)) == brute


@given(grids(), st.data())
def test_the_windows_that_touch_a_box_are_all_of_them_row_by_row(grid: Grid, data: st.DataObject) -> None:
    box = inside(data, grid.size)
    assert list(grid.touching(box)) == [window for window in grid if window.intersect(box)]


@given(grids())
def test_windows_cover_every_pixel_of_an_image(grid: Grid) -> None:
    seen = np.zeros((grid.size.height, grid.size.width), int)
    windows = list(grid)
    assert len(grid) == len(windows) == len(set(windows))
    for window in windows:
        assert window.size == grid.window
        seen[window.slices] += 1
    assert seen.min() >= 1


@given(grids())
def test_neighbouring_windows_share_at_least_the_overlap(grid: Grid) -> None:
    for axis in (grid.rows, grid.columns):
        starts = [axis.start(i) for i in range(axis.count)]
        assert all(a + axis.window - b >= grid.overlap for a, b in itertools.pairwise(starts))


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([1, 8, 16]), st.data())
def test_a_window_shrinks_to_a_small_image_and_reaches_less_than_a_patch_beyond(
    height: int, width: int, multiple: int, data: st.DataObject
) -> None:
    window = data.draw(st.integers(multiple, 150))
    grid = Grid.over(Size(height, width), window, data.draw(st.integers(0, window // 2)), multiple)
    for side, found in ((height, grid.window.height), (width, grid.window.width)):
        if side >= window:
            assert found == window
        else:
            assert side <= found < side + multiple or found == window
    for one in grid:
        assert one.bottom < height + multiple
        assert one.right < width + multiple


@given(st.integers(1, 150), st.integers(1, 150), st.integers(9, 170))
def test_blocks_cover_every_pixel_once(height: int, width: int, side: int) -> None:
    size = Size(height, width)
    seen = np.zeros((height, width), int)
    for box in blocks(size, side):
        assert size.box.contains(box)
        assert box.y % side == box.x % side == 0
        seen[box.slices] += 1
    assert (seen == 1).all()


@given(grids(), st.integers(20, 140))
def test_blocks_together_ask_for_every_window(grid: Grid, side: int) -> None:
    asked = {window for box in blocks(grid.size, side) for window in grid.touching(box)}
    assert asked == set(grid)


def test_the_last_window_is_moved_back_to_end_at_the_edge() -> None:
    grid = Grid(Size(100, 64), Size(64, 64), 16)
    assert [(w.y, w.x) for w in grid] == [(0, 0), (36, 0)]


@pytest.mark.parametrize(
    ("size", "window", "overlap", "multiple", "reason"),
    [
        (Size(100, 100), 64, -1, 16, r"overlap must be 0 to half the window \(32 px\), got -1 px"),
        (Size(100, 100), 8, 0, 16, "a window of 8 px is smaller than the model's patch of 16 px"),
    ],
)
def test_a_grid_that_leaves_gaps_is_refused(size: Size, window: int, overlap: int, multiple: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Grid.over(size, window, overlap, multiple)


@pytest.mark.parametrize("overlap", [-1, 33])
def test_windows_overlap_by_half_at_most(overlap: int) -> None:
    with pytest.raises(ValueError, match=rf"0 to half the window \(32 px\), got {overlap} px"):
        Grid(Size(100, 100), Size(64, 80), overlap)


@pytest.mark.parametrize(("length", "window", "stride"), [(0, 4, 4), (4, 0, 1), (4, 4, 0), (9, 4, 5)])
def test_an_axis_that_leaves_gaps_is_refused(length: int, window: int, stride: int) -> None:
    with pytest.raises(ValueError, match="leave no gap"):
        Axis(length, window, stride)
