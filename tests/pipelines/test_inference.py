"""The one path from blocks to probabilities: the same numbers whatever the batch, the order of blocks and who asks."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from places import PATCH, expected, model, place_class, rgb, seeded_network, write_slide

from pipelines.ahead import ahead
from pipelines.inference import Predictor, autocast, fast_precision
from pipelines.progress import Clock
from tiling import Box, Grid, ImageError, Size, View, blocks, open_image
from tiling.readers.array import ArraySource
from veca_core import Segmenter

CPU = torch.device("cpu")
PIXELS = np.random.default_rng(0).integers(0, 256, (90, 118, 3), dtype=np.uint8)
HOLES = np.random.default_rng(1).random((90, 118)) > 0.1
HOLES[20:70, 30:100] = False


@pytest.fixture(scope="module")
def network() -> Segmenter:
    """A real one, with random weights."""
    card = model().card
    return seeded_network(card.model_copy(update={"classes": card.classes[:5]}))


def predictor(network: Segmenter, batch: int = 1, precision: torch.dtype = torch.float32) -> Predictor:
    return Predictor(network, 64, batch, CPU, precision)


def whole(one: Predictor, view: View, grid: Grid, side: int = 1000, *, carry: bool = False) -> NDArray[np.float32]:
    """(classes, H, W) of all blocks put together, zero where there is no data."""
    out = np.zeros((one.network.classes, view.size.height, view.size.width), np.float32)
    cut = blocks(view.size, side)
    if carry:
        done = one.predict_blocks(view, grid, cut, lambda block, prediction: (block, prediction.probabilities))
    else:
        done = ((block, one.predict_block(view, grid, block).probabilities) for block in cut)
    for block, probabilities in done:
        out[(slice(None), *block.slices)] = probabilities
    return out


@pytest.mark.parametrize("batch", [2, 3, 16])
def test_the_batch_changes_the_numbers_by_no_more_than_rounding(network: Segmenter, batch: int) -> None:
    view = View.open(ArraySource(PIXELS, valid=HOLES))
    grid = Grid.over(view.size, 48, 12, PATCH)
    alone, together = whole(predictor(network), view, grid), whole(predictor(network, batch), view, grid)
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("side", [17, 32, 64])
@pytest.mark.parametrize("carry", [False, True])
def test_blocks_change_no_bit(network: Segmenter, batch: int, side: int, carry: bool) -> None:
    view = View.open(ArraySource(PIXELS, valid=HOLES))
    grid = Grid.over(view.size, 48, 12, PATCH)
    one = predictor(network, batch)
    assert np.array_equal(whole(one, view, grid, side, carry=carry), whole(one, view, grid))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(16, 70), st.integers(20, 90), st.data())
def test_places_come_out_in_place_for_any_grid_and_blocks(
    height: int, width: int, window: int, side: int, data: st.DataObject
) -> None:
    used = model()
    overlap = data.draw(st.integers(0, window // 2))
    view = View.open(ArraySource(rgb(height, width)))
    grid = Grid.over(view.size, window, overlap, PATCH)
    got = whole(predictor(used.network), view, grid, side, carry=data.draw(st.booleans()))
    y, x = np.mgrid[:height, :width]
    assert np.array_equal(got.argmax(axis=0), place_class(y, x))
    np.testing.assert_allclose(got.max(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("limit", [0, 10_000, 40_000])
def test_a_carry_without_room_only_costs_time(network: Segmenter, limit: int) -> None:
    view = View.open(ArraySource(PIXELS))
    grid = Grid.over(view.size, 48, 24, PATCH)
    one = predictor(network)
    plain = whole(one, view, grid, 32)
    cut = blocks(view.size, 32)
    for block, part in one.predict_blocks(view, grid, cut, lambda b, p: (b, p.probabilities), carry=limit):
        assert np.array_equal(part, plain[(slice(None), *block.slices)])


def test_the_time_is_shared_out_between_reading_computing_and_writing(network: Segmenter) -> None:
    view = View.open(ArraySource(PIXELS))
    clock, started = Clock(), time.monotonic()
    cut = blocks(view.size, 32)
    for _ in predictor(network).predict_blocks(
        view, Grid.over(view.size, 48, 24, PATCH), cut, lambda *_: time.sleep(0.05), clock=clock
    ):
        pass
    passed = time.monotonic() - started
    assert clock.seconds.keys() == {"read", "compute", "write"}
    assert 0.9 * passed < sum(clock.seconds.values()) <= passed
    assert clock.seconds["write"] > 0.3, "finishing a block takes 0.05 s and nothing else takes any"
    assert sum(clock.shares("read", "compute", "write").values()) == pytest.approx(1, abs=1e-3)


def test_nothing_is_seen_where_no_tissue_is(network: Segmenter) -> None:
    class RightHalf:
        def touches(self, box: Box) -> bool:
            return box.right > 64

    view = View.open(ArraySource(PIXELS))
    grid = Grid.over(view.size, 32, 0, PATCH)
    seen = predictor(network).predict_block(view, grid, view.size.box, tissue=RightHalf()).seen
    assert not seen[:, :64].any()
    assert seen[:, 64:].all()


def test_labels_are_class_values_and_no_data_where_nothing_was_seen() -> None:
    used = model()
    view = View.open(ArraySource(rgb(90, 118), valid=HOLES))
    prediction = predictor(used.network).predict_block(view, Grid.over(view.size, 64, 8, PATCH), view.size.box)
    values = np.array([c.value for c in used.card.classes], np.uint8)
    assert np.array_equal(prediction.labels(values, 255), np.where(HOLES, expected(90, 118), 255))


def test_probabilities_are_zero_where_there_is_no_data_whatever_the_blocks(network: Segmenter) -> None:
    view = View.open(ArraySource(PIXELS, valid=HOLES))
    grid = Grid.over(view.size, 48, 12, PATCH)
    for side in (1000, 17):
        for block in blocks(view.size, side):
            found = predictor(network).predict_block(view, grid, block).probabilities
            assert not found[:, ~HOLES[block.slices]].any()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "uint32", "int16", ">i4", "float32", ">f4", "float64"])
def test_pixels_of_any_type_and_byte_order_reach_the_network(network: Segmenter, dtype: str) -> None:
    grid = Grid.over(Size(90, 118), 64, 8, PATCH)
    same = whole(predictor(network), View.open(ArraySource(PIXELS)), grid)
    assert np.array_equal(whole(predictor(network), View.open(ArraySource(PIXELS.astype(dtype))), grid), same)


def test_bfloat16_gives_nearly_the_same(network: Segmenter) -> None:
    view = View.open(ArraySource(PIXELS))
    grid = Grid.over(view.size, 64, 8, PATCH)
    exact, fast = (whole(predictor(network, precision=p), view, grid) for p in (torch.float32, torch.bfloat16))
    assert fast.dtype == np.float32
    np.testing.assert_allclose(fast, exact, atol=0.02)
    assert not np.array_equal(fast, exact)


def test_the_precision_is_one_that_the_device_has() -> None:
    assert fast_precision(CPU) in (torch.float32, torch.bfloat16)
    with autocast(CPU, torch.float32):
        assert not torch.is_autocast_enabled("cpu")
    with autocast(CPU, torch.bfloat16):
        assert torch.is_autocast_enabled("cpu")


def test_what_cannot_be_read_is_said_by_the_reader(network: Segmenter, tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.ome.tif", 300, 300, levels=1)
    content = bytearray(path.read_bytes())
    view = View.open(open_image(path))
    content[2000:-500] = b"\xff" * (len(content) - 2500)
    path.write_bytes(content)
    before = threading.active_count()
    with pytest.raises(ImageError, match="cannot read"):
        whole(predictor(network), view, Grid.over(view.size, 64, 8, PATCH))
    assert threading.active_count() <= before + 1


@given(st.lists(st.integers(), max_size=30), st.integers(1, 9))
@settings(deadline=None, max_examples=30)
def test_what_is_done_ahead_comes_in_order(items: list[int], count: int) -> None:
    assert list(ahead(lambda x: x * 2, items, count)) == [x * 2 for x in items]


def test_an_error_ahead_comes_where_it_belongs() -> None:
    def look(x: int) -> int:
        if x == 3:
            raise ImageError("three")
        return x

    found = []
    with pytest.raises(ImageError, match="three"):
        found.extend(ahead(look, range(10), 4))
    taken = ahead(look, range(10), 4)
    assert [next(taken) for _ in range(3)] == [0, 1, 2]


def test_no_more_is_done_ahead_than_asked() -> None:
    done: list[int] = []
    taken = ahead(lambda x: done.append(x) or x, range(100), 3)
    next(taken)
    taken.close()  # type: ignore[attr-defined]
    assert len(done) <= 5
