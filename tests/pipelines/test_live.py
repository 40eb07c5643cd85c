"""Regions that are segmented while one looks: the pixels of a whole run, told cell by cell, and kept."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from drawn_slides import tissue, write_svs
from PIL import Image

from pipelines.display.masks import MaskTiles, Place, polygon_mask
from pipelines.errors import RequestError
from pipelines.job import Job, Options
from pipelines.live.board import CONFIDENCE, Board
from pipelines.live.engine import Engine, Wish
from pipelines.live.record import LiveRecord
from pipelines.live.worker import Worker
from pipelines.segmentation import segment
from pipelines.view import read_regions
from tiling import Box, open_image
from tiling.exports import EXPORTS
from tiling.labels import Labels
from veca_core import load_model

CORNERS = [(100.0, 60.0), (100.0, 420.0), (470.0, 420.0), (300.0, 60.0)]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(1)
    patches = rng.integers(0, 256, (39, 34, 3), np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    return write_svs(tmp_path_factory.mktemp("slides") / "slide.svs", patches[:620, :540])


@pytest.fixture
def asked(tmp_path: Path, slide: Path, tiny_model: Path) -> dict[str, Any]:
    """A request for a region, as the page sends it."""
    return {
        "do": "segment", "id": "r", "image": str(slide), "model": str(tiny_model), "cores": None, "memory": None,
        "corners": CORNERS, "folder": str(tmp_path / "regions" / "r"), "board": str(tmp_path / "board"), "title": "r",
    }  # fmt: skip


def run(request: dict[str, Any], stop_after: int | None = None) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = []
    worker = Worker(said.append)

    def say(message: dict[str, Any]) -> None:
        said.append(message)
        if sum(m["event"] == "cell" for m in said) == stop_after:
            worker.stopped.add(request["id"])

    worker.say = say
    worker.do(request)
    return said


def test_a_region_has_the_pixels_of_a_run_over_the_whole_image(
    tmp_path: Path, slide: Path, tiny_model: Path, asked: dict[str, Any]
) -> None:
    said = run(asked)
    assert said[-1]["event"] == "finished", said[-1]
    whole = segment(slide, load_model(tiny_model), tmp_path / "all", Options(exports=(), tissue=False)).labels()
    image = open_image(slide)
    region = MaskTiles.open(Path(asked["folder"]) / "labels.zarr", image.georef)
    assert (region.place.y, region.place.x, region.place.step_y) == (100, 60, 1)
    box = Box.between(100, 60, 470, 420)
    assert (region.sizes[0].height, region.sizes[0].width) == (box.height, box.width)
    inside = polygon_mask(CORNERS, box)
    found = region.read(region.sizes[0].box, 0)
    assert np.array_equal(found[inside], whole.read(box)[inside])
    assert (found[~inside] == 255).all()
    assert len(np.unique(found[inside])) > 1


def test_cells_are_told_when_they_can_be_seen_and_cover_the_region_once(asked: dict[str, Any]) -> None:
    said = run(asked)
    cells = [Box(*m["cell"]) for m in said if m["event"] == "cell"]
    covered = np.zeros((370, 360), int)
    for cell in cells:
        covered[cell.slices] += 1
    inside = polygon_mask(CORNERS, Box.between(100, 60, 470, 420))
    assert covered.max() == 1
    assert covered[inside].all()
    shares = [m["done"] for m in said if m["event"] == "cell"]
    assert shares == sorted(shares)


def test_confidence_is_that_of_the_class_that_won(asked: dict[str, Any]) -> None:
    run(asked)
    board = Board.open(Path(asked["board"]))
    kept = np.load(Path(asked["folder"]) / CONFIDENCE)
    assert np.array_equal(kept, board.confidence)
    inside = board.values != 255
    assert (board.confidence[inside] >= 255 // 4).all()  # the largest of four is at least a quarter
    assert (board.confidence[~inside] == 0).all()
    assert board.confidence_at(-1, 0) is None


def test_a_stopped_region_keeps_what_is_finished_and_says_so(asked: dict[str, Any]) -> None:
    said = run(asked, stop_after=1)
    assert said[-1]["event"] == "finished"
    assert said[-1]["whole"] is False
    record = LiveRecord.read(Path(asked["folder"]))
    assert not record.finished
    assert record.corners == tuple(CORNERS)
    assert sum(m["event"] == "cell" for m in said) < 4


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"corners": [(-90, -90), (-90, -10), (-10, -10)]}, "lies outside of the image"),
        ({"corners": [(5.1, 5.1), (5.2, 5.1), (5.2, 5.2)]}, "holds no pixel"),
        ({"image": "/nowhere/slide.svs"}, "no such file"),
        ({"model": "no-such-model"}, "no-such-model"),
        ({"cores": 7}, "7"),
        ({"memory": 1000}, "is not enough"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    asked: dict[str, Any], changed: dict[str, Any], reason: str
) -> None:
    (said,) = run(asked | changed)
    assert said["event"] == "failed"
    assert reason in said["reason"]
    assert "\n" not in said["reason"]
    assert not Path(asked["folder"]).exists()


def test_the_plan_is_that_of_a_run(slide: Path, tiny_model: Path, asked: dict[str, Any]) -> None:
    (said,) = run({**asked, "do": "plan", "cores": 8})
    job = Job.prepare(open_image(slide), load_model(tiny_model), Path("none"), Options(cores=8))
    assert said["event"] == "planned"
    assert f"plan: 8 cores, window {job.plan.window} px" in said["lines"][1]
    assert any(line.startswith("->") for line in said["table"])


def test_regions_of_a_region_lie_where_they_are_on_the_image(asked: dict[str, Any]) -> None:
    run(asked)
    folder = Path(asked["folder"])
    rows = read_regions(folder, 10**6)
    georef = open_image(asked["image"]).georef
    mask = MaskTiles.open(folder / "labels.zarr", georef)
    values = mask.read(mask.sizes[0].box, 0)
    assert sum(row.pixels for row in rows) == (values != 255).sum()
    names = {c.name: c.value for c in mask.labels.classes}
    square = max(rows, key=lambda row: (row.perimeter or 1) ** -2 * row.pixels)  # compact: its centroid lies in it
    x, y = ~georef.transform @ square.world
    assert values[int(y - mask.place.y), int(x - mask.place.x)] == names[square.name]
    assert [row.pixels for row in read_regions(folder, 3)] == sorted((row.pixels for row in rows), reverse=True)[:3]
    (folder / "regions.csv").write_text("class,value\nx")
    with pytest.raises(RequestError, match="is damaged"):
        read_regions(folder, 3)


def test_regions_of_a_picture_without_a_pixel_size_lie_where_they_are(
    tmp_path: Path, tiny_model: Path, asked: dict[str, Any]
) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(tissue(500, 480)).save(picture)
    said = run({**asked, "image": str(picture), "spacing": "native", "model": str(tiny_model)})
    assert said[-1]["event"] == "finished", said[-1]
    content = json.loads((Path(asked["folder"]) / "regions.geojson").read_text())
    corners = np.array([c for f in content["features"] for ring in f["geometry"]["coordinates"] for c in ring])
    assert (corners.min(axis=0) >= (60, 100)).all()
    assert corners.max(axis=0)[0] > 400


@pytest.mark.parametrize("kind", ["picture", "map"])
def test_regions_of_a_part_count_rows_and_columns_of_the_whole_image(
    tmp_path: Path, tiny_model: Path, asked: dict[str, Any], kind: str
) -> None:
    image, spacing = tmp_path / "image.png", "0.5um"
    Image.fromarray(tissue(500, 480)).save(image)
    if kind == "map":
        spacing = "native"
        with rasterio.open(
            tmp_path / "image.tif", "w", driver="GTiff", height=500, width=480, count=3, dtype="uint8",
            crs="EPSG:32633", transform=rasterio.Affine(2, 0, 500_000, 0, -2, 5_000_000), photometric="RGB",
        ) as raster:  # fmt: skip
            raster.write(np.moveaxis(tissue(500, 480), -1, 0))
        image = tmp_path / "image.tif"
    said = run({**asked, "image": str(image), "spacing": spacing, "model": str(tiny_model)})
    assert said[-1]["event"] == "finished", said[-1]
    folder = Path(asked["folder"])
    labels = Labels.open(folder / "labels.zarr")
    with (folder / "regions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows
    world = open_image(image).georef.transform if kind == "map" else rasterio.Affine.scale(0.5)
    for row in rows:
        column, line = ~world @ (float(row["x"]), float(row["y"]))
        assert (float(row["column"]), float(row["row"])) == pytest.approx((column, line), abs=0.01)
    EXPORTS["geojson"](labels, folder, None, {})
    content = json.loads((folder / "regions.geojson").read_text())
    corners = np.array([c for f in content["features"] for ring in f["geometry"]["coordinates"] for c in ring])
    assert corners.min(axis=0).tolist() == [60, 100]
    assert MaskTiles(labels, open_image(image).georef).place == Place(100, 60, 1, 1)


def test_a_model_that_was_trained_again_is_loaded_again(tmp_path: Path, tiny_model: Path) -> None:
    place = str(shutil.copytree(tiny_model, tmp_path / "model"))
    worker = Worker(lambda _: None)
    first = worker.model(place)
    assert worker.model(place) is first
    network = load_model(place).network
    network.encoder.bank.tokens.data += 1
    network.save_pretrained(place)
    assert worker.model(place).digest == load_model(place).digest != first.digest


def test_attention_maps_say_where_they_lie(tmp_path: Path, asked: dict[str, Any]) -> None:
    (said,) = run({**asked, "do": "attention", "centre": [200, 5], "file": str(tmp_path / "maps.npy")})
    layers, cores, height, width = said["shape"]
    maps = np.load(tmp_path / "maps.npy")
    assert maps.shape == (layers, cores, height, width)
    assert (maps.max(axis=(2, 3)) == 255).all()
    y, x, tall, wide = said["covers"]
    assert (x, tall, wide) == (0, 64, 64)
    assert y == 200 - 32


def test_the_process_beside_the_page_answers_and_is_started_again_when_it_was_killed(
    tmp_path: Path, slide: Path, tiny_model: Path
) -> None:
    engine = Engine(tmp_path / "regions")
    try:
        wish = Wish(str(slide), str(tiny_model))
        first = engine.segment(wish, CORNERS)
        assert first.ended.wait(90)
        assert first.state == "finished", first.reason
        assert first.folder is not None
        assert LiveRecord.read(first.folder).finished
        assert engine.board(first).sizes[0].height == 370
        assert json.loads((first.folder / "live.json").read_text())["model"] == "tiny-model"
        pid = engine.pid
        assert pid is not None
        waiting = engine.plan(wish, CORNERS)
        os.kill(pid, signal.SIGKILL)
        assert waiting.ended.wait(30)
        if waiting.state == "failed":  # it may have answered just before
            assert "ended with status" in waiting.reason
        again = engine.plan(wish, CORNERS)
        assert again.ended.wait(90)
        assert again.state == "finished", again.reason
    finally:
        engine.close()
    assert engine.pid is None
