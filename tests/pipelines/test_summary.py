"""The page about a training or an evaluation: it needs nothing else, and shows what was said of held-back images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from labelled import COLORS, VALUES, recipe, write_data
from PIL import Image

from pipelines import train
from pipelines.scenes import IGNORE, Scene
from pipelines.summary import MOST, SIDE, Samples, displayed
from tiling import Box, View, open_image
from tiling.readers.array import ArraySource


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("labelled"))


def scene(name: str, truth: np.ndarray[Any, Any]) -> Scene:
    mask = np.where(truth == IGNORE, 255, VALUES[np.minimum(truth, 2)]).astype(np.uint8)
    pixels = np.ascontiguousarray(COLORS[np.minimum(truth, 2)])
    return Scene.whole(name, name, ArraySource(pixels), ArraySource(mask))


def test_a_row_shows_the_image_the_truth_and_what_was_called(data: Path, tmp_path: Path) -> None:
    truth = np.zeros((700, 900), np.uint8)
    truth[600:, 800:], truth[600:, 780:800], truth[500:520] = 1, 2, IGNORE
    called = np.where(truth == 1, 2, truth)
    samples = Samples(recipe(data).classes)
    samples.see(scene("a", truth), Box(0, 0, 700, 900), truth, called)
    samples.see(scene("a", truth), Box(0, 0, 700, 900), truth, truth)
    assert samples.names == ["a"]
    samples.write(tmp_path / "samples.png")
    picture = np.array(Image.open(tmp_path / "samples.png"))
    assert picture.shape[0] == SIDE
    image, there, said = (picture[:, i * (SIDE + 8) :][:, :SIDE].astype(int) for i in range(3))
    different = (there != said).any(axis=2)
    assert different.any(), "the part with most classes is shown"
    # One column beside it has a border in one of the two.
    assert (image[different] == COLORS[1]).all(axis=1).mean() > 0.98, "and differs where the calls do"
    colors = {tuple(bytes.fromhex(c.color[1:])) for c in recipe(data).classes}
    assert colors & {tuple(color) for color in there.reshape(-1, 3).tolist()}, "borders have their class's colour"


def test_few_scenes_are_shown_and_small_ones_whole(data: Path, tmp_path: Path) -> None:
    samples = Samples(recipe(data).classes)
    for i in range(MOST + 2):
        truth = np.zeros((5 + i, 1), np.uint8)
        samples.see(scene(str(i), truth), Box(0, 0, 5 + i, 1), truth, truth)
    assert samples.names == [str(i) for i in range(MOST)]
    samples.write(tmp_path / "samples.png")
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == (3 + 2 * 8, 5 + 6 + 7 + 8 + (MOST - 1) * 8)


@pytest.mark.parametrize(("bands", "dtype"), [(1, np.uint16), (2, np.float32), (5, np.int16), (3, np.uint8)])
def test_pixels_of_every_kind_become_colours(bands: int, dtype: Any) -> None:
    values = np.random.default_rng(0).integers(0, 200, (20, 30, bands)).astype(dtype)
    shown = displayed(View.open(ArraySource(values)), Box(2, 3, 10, 20))
    assert (shown.shape, shown.dtype) == ((10, 20, 3), np.uint8)
    assert shown.max() > shown.min()
    if dtype == np.uint8:
        assert np.array_equal(shown, values[2:12, 3:23])


def test_red_green_and_blue_are_found_wherever_they_are_among_the_bands(tmp_path: Path) -> None:
    names, red = ("nir", "blue", "red", "green"), np.zeros((4, 9, 9), np.uint8)
    red[2] = 200
    profile = {"driver": "GTiff", "width": 9, "height": 9, "count": 4, "dtype": "uint8"}
    with rasterio.open(tmp_path / "a.tif", "w", transform=rasterio.Affine.scale(2, -2), **profile) as file:
        file.write(red)
        file.descriptions = names
    shown = displayed(View.open(open_image(tmp_path / "a.tif")), Box(0, 0, 9, 9))
    assert np.array_equal(shown, np.broadcast_to(np.uint8((200, 0, 0)), (9, 9, 3)))


def test_training_and_evaluation_write_a_page_that_needs_nothing_else(data: Path, tmp_path: Path, veca: Any) -> None:
    done = train(recipe(data), tmp_path / "run", device="cpu")
    command = ("evaluate", done.folder, data / "recipe.yaml", "--cores", "8,16", "--out", tmp_path / "scores")
    said = veca(*command, "--device", "cpu")
    assert said.status == 0, said.err
    pages = [(tmp_path / place / "summary.html").read_text(encoding="utf-8") for place in ("run", "scores")]
    for page in pages:
        assert page.count("data:image/png;base64,") == 2
        assert not re.search(r"<script|https?://|src=\"(?!data:)", page)
        assert "nucleus" in page
        assert str(data) not in page, "where it lay on this machine is nobody's business"
    assert f"mean IoU {done.mean_iou:.4f} at step {done.step}; held back: case2" in pages[0]
    assert "border F1" in pages[1]
    with Image.open(tmp_path / "scores" / "samples.png") as picture:
        assert picture.width == 3 * 96 + 16
