"""Masks as tiles: bare class values, in their place, and counted rightly."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.measure import points_in_poly

from pipelines.display.masks import TILE, MaskTiles, Place, polygon_mask
from pipelines.display.thin import build, halve, rank, write
from pipelines.errors import RequestError
from pipelines.live.board import Board
from tiling import Box, Georef, LabelClass, Size
from tiling.canvas import Canvas
from tiling.labels import Labels
from tiling.layers import Layer, quantised

CLASSES = (LabelClass(0, "background", (0, 0, 0)), LabelClass(3, "nucleus", (0, 200, 0)))


def write_labels(
    folder: Path, values: NDArray[np.uint8], georef: Georef, scale: tuple[float, float] = (1, 1), corner: Any = (0, 0)
) -> Labels:
    canvas = Canvas.create(
        folder / "labels.partial", size=Size(*values.shape), block=1024, chunk=512, classes=CLASSES, georef=georef,
        kind="slide", name="x", fingerprint="f", scale=scale, corner=corner,
    )  # fmt: skip
    with canvas:
        for box in canvas.blocks:
            canvas.write(box, np.ascontiguousarray(values[box.slices]))
        return canvas.publish(folder / "labels.zarr")


@pytest.fixture(scope="module")
def values() -> NDArray[np.uint8]:
    rng = np.random.default_rng(3)
    small = rng.choice(np.array([0, 3, 255], np.uint8), (130, 90))
    return small.repeat(10, axis=0).repeat(12, axis=1)[:1290, :1077]


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory, values: NDArray[np.uint8]) -> MaskTiles:
    image = Georef(Affine.scale(0.5, 0.5), "um")
    labels = write_labels(tmp_path_factory.mktemp("mask"), values, image.shifted(40, 60).scaled(2, 2), (2, 2), (40, 60))
    return MaskTiles(labels, image)


def test_tiles_are_the_labels_of_every_level(mask: MaskTiles) -> None:
    for level, size in enumerate(mask.sizes):
        out = np.zeros((size.height, size.width), np.uint8)
        for y in range(0, size.height, TILE):
            for x in range(0, size.width, TILE):
                tile = mask.tile(level, y // TILE, x // TILE)
                out[y : y + TILE, x : x + TILE] = tile
        assert np.array_equal(out, mask.labels.read(size.box, level))
        with pytest.raises(IndexError):
            mask.tile(level, -(-size.height // TILE), 0)


def test_a_mask_lies_where_its_georeference_says(mask: MaskTiles) -> None:
    assert mask.place == Place(40, 60, 2, 2)


def test_a_mask_that_is_turned_is_refused() -> None:
    with pytest.raises(RequestError, match="turned against its image"):
        Place.between(Georef(Affine.rotation(10), "um"), Georef(Affine.identity(), "um"))


def test_a_region_is_counted_pixel_by_pixel(mask: MaskTiles, values: NDArray[np.uint8]) -> None:
    counted = mask.count([(40 + 200, 60 + 100), (40 + 200, 60 + 900), (40 + 1000, 60 + 900), (40 + 1000, 60 + 100)])
    wanted, numbers = np.unique(values[100:500, 50:450], return_counts=True)
    assert counted.exact
    assert counted.pixels == dict(zip(wanted.tolist(), numbers.tolist(), strict=True))


def test_what_does_not_touch_the_mask_holds_nothing(mask: MaskTiles) -> None:
    assert mask.count([(0, 0), (0, 30), (30, 30)]).pixels == {}


def test_a_huge_region_is_counted_on_a_coarser_level_and_says_so(
    mask: MaskTiles, values: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.display.masks.COUNTED", 400_000)
    corners = [(0, 0), (0, 5000), (5000, 5000), (5000, 0)]
    counted = mask.count(corners)
    assert not counted.exact
    for value in (0, 3, 255):
        assert counted.pixels[value] == pytest.approx((values == value).sum(), rel=0.05)


@given(corners=st.lists(st.tuples(st.floats(-5, 45), st.floats(-5, 45)), min_size=3, max_size=7))
@settings(max_examples=100, deadline=None)
def test_a_polygon_holds_the_centres_that_skimage_says(corners: list[tuple[float, float]]) -> None:
    # A centre exactly on an edge belongs to either side: keep clear of it.
    clear = [(round(y, 1) + 0.013, round(x, 1) + 0.0171) for y, x in corners]
    y, x = np.mgrid[10:40, 3:30] + 0.5
    wanted = points_in_poly(np.stack([y.ravel(), x.ravel()], 1), np.array(clear)).reshape(y.shape)
    assert (polygon_mask(clear, Box.between(10, 3, 40, 30)) != wanted).sum() <= 1


def test_a_board_shows_the_levels_that_a_finished_label_image_has(
    tmp_path: Path, values: NDArray[np.uint8], mask: MaskTiles
) -> None:
    board = Board.create(tmp_path / "b", Size(*values.shape), Place(40, 60, 2, 2), [(0, "background", "#000000")])
    assert (board.values == 255).all()
    board.values[:] = values
    seen = Board.open(tmp_path / "b")
    assert seen.sizes == mask.sizes
    for level in range(len(seen.sizes)):
        assert np.array_equal(seen.tile(level, 0, 0), mask.tile(level, 0, 0))
    assert seen.count([(0, 0), (0, 900), (900, 900)]) == mask.count([(0, 0), (0, 900), (900, 900)])


def test_damaged_labels_are_told_in_one_line(tmp_path: Path, values: NDArray[np.uint8]) -> None:
    labels = write_labels(tmp_path, values, Georef.pixels())
    shard = next(p for p in (labels.path / "0").rglob("*") if p.is_file() and p.name != "zarr.json")
    shard.write_bytes(b"nonsense")
    with pytest.raises(RequestError, match="is damaged"):
        MaskTiles(labels, None).tile(0, 0, 0)


@given(
    values=st.integers(1, 70).flatmap(
        lambda h: st.integers(1, 70).map(lambda w: np.random.default_rng(h * w).choice([0, 3, 5, 255], (h, w)))
    )
)
def test_of_the_pixels_below_one_the_rarest_class_shows_at_every_level(values: NDArray[np.int64]) -> None:
    classes = (*CLASSES, LabelClass(5, "vessel", (1, 2, 3)))
    ranks = rank(classes, np.bincount([3, 3, 5, 0, 0, 0], minlength=256))
    assert ranks[5] > ranks[3] > ranks[0] > ranks[255] == 0
    level, step = values.astype(np.uint8), 1
    while max(level.shape) > 1:
        level, step = halve(level, ranks), 2 * step
        for y, x in np.ndindex(level.shape):
            cell = values[y * step : (y + 1) * step, x * step : (x + 1) * step]
            assert ranks[level[y, x]] == ranks[cell].max()


def test_a_line_of_one_pixel_is_seen_at_every_zoom_where_one_asks_for_it(tmp_path: Path) -> None:
    values = np.zeros((2600, 3000), np.uint8)
    values[1300, :] = 3
    labels = write_labels(tmp_path, values, Georef.pixels())
    tiles = MaskTiles(labels, None, tmp_path / "cache")
    last = len(tiles.sizes) - 1
    assert not (tiles.tile(last, 0, 0) == 3).any()
    for level in range(1, last + 1):
        shown, final = tiles.thin_tile(level, (1300 >> level) // TILE, 0)
        assert final
        assert (shown == 3).any(axis=0).all()
    write(labels.path, tmp_path / "made")
    assert all(
        np.array_equal(zarr.open_array(tmp_path / "made" / str(i), mode="r")[:], level)
        for i, level in enumerate(build(labels), 1)
    )


def test_a_large_mask_is_thinned_by_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.display.thin.IN_MEMORY", 1000)
    values = np.zeros((700, 900), np.uint8)
    values[:, 5] = 3
    tiles = MaskTiles(write_labels(tmp_path, values, Georef.pixels()), None, tmp_path / "cache")
    _, final = tiles.thin_tile(1, 0, 0)
    assert not final
    deadline = time.monotonic() + 120
    while not final and time.monotonic() < deadline:
        time.sleep(0.05)
        shown, final = tiles.thin_tile(1, 0, 0)
    assert (shown[:, 2] == 3).all()
    tiles.close()


def test_the_probability_beside_a_mask_is_told_for_a_pixel(tmp_path: Path) -> None:
    values = np.zeros((50, 60), np.uint8)
    layer = Layer("probability", ("background", "nucleus"))
    probabilities = np.stack([np.full((50, 60), 0.25, np.float32), np.full((50, 60), 0.75, np.float32)])
    seen = np.ones((50, 60), bool)
    seen[10] = False
    canvas = Canvas.create(
        tmp_path / "labels.partial", size=Size(50, 60), block=512, chunk=512, classes=CLASSES, georef=Georef.pixels(),
        kind="slide", name="x", fingerprint="f", layers=[layer],
    )  # fmt: skip
    with canvas:
        (box,) = canvas.blocks
        canvas.write(box, values, {"probability": quantised(probabilities, seen)})
        labels = canvas.publish(tmp_path / "labels.zarr")
    tiles = MaskTiles(labels, None)
    assert tiles.confident
    assert tiles.probability_at(20, 20) == pytest.approx(0.75, abs=1 / 254)
    assert tiles.probability_at(10, 20) is None
    assert tiles.probability_at(50, 0) is None
    assert tiles.probability_at(-1, 0) is None
