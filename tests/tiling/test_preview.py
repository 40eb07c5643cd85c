"""The preview shows the image and its classes in their colours, small, and from any kind of image."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import zarr
from affine import Affine
from label_images import CLASSES, SLIDE, publish, random_labels
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import ColorInterp

from tiling.exports import EXPORTS
from tiling.exports.overlay import OPACITY, coarse_labels, overlay
from tiling.exports.preview import draw_preview
from tiling.exports.thumbnail import thumbnail
from tiling.geometry import Box, Size
from tiling.georef import Georef, Spacing
from tiling.labels import NODATA, LabelClass
from tiling.readers import open_image
from tiling.readers.array import ArraySource
from tiling.view import View


def view(pixels: NDArray[Any], **options: Any) -> View:
    return View.open(ArraySource(pixels, **options))


def box_means(pixels: NDArray[Any], side: int) -> NDArray[np.float64]:
    height, width = pixels.shape[0] // side, pixels.shape[1] // side
    return pixels.reshape(height, side, width, side, -1).mean(axis=(1, 3))


def test_a_thumbnail_is_the_mean_of_what_lies_below() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
    rgb, valid = thumbnail(view(pixels), 400)
    assert valid.all()
    np.testing.assert_allclose(rgb, box_means(pixels, 3), atol=0.51)


def test_a_thumbnail_of_a_file_is_the_same_from_its_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (333, 700, 3), np.uint8)
    array = zarr.create_array(tmp_path / "image", data=pixels, chunks=(50, 60, 3))
    monkeypatch.setattr("tiling.exports.thumbnail._PIECE", 10_000)
    rgb, _ = thumbnail(view(array), 64)
    monkeypatch.undo()
    np.testing.assert_array_equal(rgb, thumbnail(view(pixels), 64)[0])
    assert rgb.shape == (30, 64, 3)


def test_the_coarsest_level_that_is_fine_enough_is_read(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_image(shared_data / "odd" / "wsi" / "hamamatsu_test3-DAPI.ndpi")
    sizes = [level.size for level in source.levels]
    read, original = [], type(source).read

    def spy(self: Any, box: Box, level: int = 0) -> NDArray[Any]:
        read.append(level)
        return original(self, box, level)

    monkeypatch.setattr(type(source), "read", spy)
    rgb, _ = thumbnail(View.open(source), 500)
    assert max(rgb.shape) == 500
    assert len(sizes) > 3
    assert set(read) == {max(i for i, s in enumerate(sizes) if s.height >= rgb.shape[0] and s.width >= rgb.shape[1])}


def test_invalid_pixels_do_not_bleed_into_a_thumbnail() -> None:
    pixels = np.full((100, 100, 3), 200, np.uint8)
    mask = np.ones((100, 100), bool)
    pixels[:50, ::2], mask[:50, ::2] = 0, False
    pixels[60:], mask[60:] = 0, False
    rgb, valid = thumbnail(view(pixels, valid=mask), 50)
    assert (rgb[:30] == 200).all()
    assert (rgb[30:] == 0).all()
    np.testing.assert_array_equal(valid, np.arange(50)[:, None].repeat(50, 1) < 30)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.int16, np.float64])
def test_values_that_are_not_a_displays_are_stretched(dtype: type) -> None:
    ramp = np.linspace(-1000, 3000, 200 * 200).reshape(200, 200)
    pixels = (ramp + (1000 if dtype == np.uint16 else 0)).astype(dtype)
    if np.dtype(dtype).kind == "f":
        pixels[0, :50] = np.nan
    rgb, valid = thumbnail(view(pixels), 200)
    assert (rgb[..., 0] == rgb[..., 2]).all()
    assert (rgb[valid] == 0).mean() == pytest.approx(0.02 * 3, abs=0.05)
    assert (rgb[valid] == 255).mean() == pytest.approx(0.02 * 3, abs=0.05)
    assert rgb[100, 100, 0] == pytest.approx(128, abs=3)
    assert valid.all() == (np.dtype(dtype).kind != "f")


def test_red_green_and_blue_are_found_by_their_names(tmp_path: Path) -> None:
    bands = np.random.default_rng(0).integers(1, 255, (4, 60, 70), np.uint8)
    form = {"driver": "GTiff", "height": 60, "width": 70, "count": 4, "dtype": "uint8", "photometric": "minisblack"}
    place = {"crs": "EPSG:32633", "transform": Affine(1, 0, 5, 0, -1, 7)}
    with rasterio.open(tmp_path / "image.tif", "w", **form, **place) as file:
        file.write(bands)
        file.colorinterp = [ColorInterp.undefined] * 4
        file.descriptions = ("nir", "Blue", "Green", "Red")
    rgb, _ = thumbnail(View.open(open_image(tmp_path / "image.tif")), 70)
    np.testing.assert_array_equal(rgb, np.stack(bands[[3, 2, 1]], axis=-1))


@pytest.mark.parametrize("pixels", [np.full((5, 5), 7, np.uint16), np.full((5, 5), np.nan, np.float32)])
def test_an_image_of_one_value_or_none_is_shown(pixels: NDArray[Any]) -> None:
    rgb, valid = thumbnail(view(pixels), 5)
    assert (rgb == (128 if valid.all() else 0)).all()


def test_a_large_image_without_levels_is_read_in_little_memory() -> None:
    pixels = np.zeros((6000, 6000, 3), np.uint8)
    image = view(pixels)
    tracemalloc.start()
    try:
        thumbnail(image, 700)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < pixels.nbytes


def test_a_coarse_pixel_shows_the_class_that_covers_most_of_it(tmp_path: Path) -> None:
    values = np.zeros((1000, 1000), np.uint8)
    values[:, 495:] = 1
    values[700:, :30] = NODATA
    shown = coarse_labels(publish(tmp_path, values), Size(100, 100))
    assert (shown[:70, :49] == 0).all()
    assert (shown[:, 50:] == 1).all()
    assert (shown[70:, :3] == NODATA).all()
    assert set(np.unique(shown)) == {0, 1, NODATA}


def test_classes_are_tinted_bordered_and_background_is_left_alone() -> None:
    picture = np.full((9, 9, 3), 100, np.uint8)
    values = np.zeros((9, 9), np.uint8)
    values[2:7, 2:7] = 1
    painted = overlay(picture, values, CLASSES)
    assert (painted[0, 0] == 100).all()
    assert painted[2, 2].tolist() == list(CLASSES[1].color)
    tint = [round(100 + (c - 100) * OPACITY) for c in CLASSES[1].color]
    np.testing.assert_allclose(painted[4, 4], tint, atol=1)


def test_the_preview_shows_the_image_its_classes_and_the_legend(tmp_path: Path) -> None:
    values = np.zeros((1500, 2000), np.uint8)
    values[:750], values[:, 1500:] = 1, NODATA
    labels = publish(tmp_path, values, block=1024)
    image = view(np.full((1500, 2000, 3), (10, 200, 10), np.uint8))
    (path,) = EXPORTS["preview"](labels, tmp_path, image, {"model": "a – b"})
    with Image.open(path) as file:
        assert file.text["model"] == "a – b"  # type: ignore[attr-defined]
        page = np.asarray(file)
    assert page.shape[1] <= 1600
    middle = page.shape[1] // 2
    tint = np.round(np.array([10, 200, 10]) * (1 - OPACITY) + np.array(CLASSES[1].color) * OPACITY)

    def share(half: NDArray[np.uint8], color: NDArray[Any]) -> float:
        return float((np.abs(half.astype(int) - color).max(axis=-1) <= 1).sum() / (half.shape[0] * half.shape[1]))

    left, right = page[:, :middle], page[:, middle:]
    assert share(left, np.array([10, 200, 10])) > 0.5
    assert share(right, tint) == pytest.approx(share(right, np.array([10, 200, 10])), rel=0.05)
    below = page[700:]
    for c in CLASSES:
        assert (below == c.color).all(axis=-1).any(), f"no swatch for {c.name}"


def test_the_bare_mask_is_shown_in_pure_colours(tmp_path: Path) -> None:
    labels = publish(tmp_path, random_labels(500, 800, smooth=50))
    page = np.asarray(draw_preview(labels, None))
    for c in CLASSES[:3]:
        assert (page == c.color).all(axis=-1).mean() > 0.05


@pytest.mark.parametrize(
    ("size", "georef"),
    [
        ((1, 1), SLIDE),
        ((1, 9000), SLIDE),
        ((9000, 1), Georef.micrometres(Spacing.square(1e-3, "um"))),
        ((2, 3), Georef.pixels()),
        ((700, 400), Georef.micrometres(Spacing.square(1e6, "um"))),
    ],
)
def test_a_preview_is_drawn_for_any_shape(tmp_path: Path, size: tuple[int, int], georef: Georef) -> None:
    labels = publish(tmp_path, random_labels(*size), georef=georef, block=4096, chunk=512)
    page = draw_preview(labels, view(np.full((*size, 3), 50, np.uint8)))
    assert page.width <= 1600


def test_long_and_many_names_stay_on_the_page(tmp_path: Path) -> None:
    classes = [LabelClass(i, f"class number {i} " + "with a very long name " * (i % 7), (i, 0, 0)) for i in range(40)]
    labels = publish(tmp_path, np.zeros((64, 64), np.uint8), classes=classes, name="a name\nof two lines " * 20)
    page = np.asarray(draw_preview(labels, None))
    assert (page[:, -20:] == 255).all()
    assert (page[-20:] == 255).all()


def test_an_aerial_scene_with_its_mask_is_previewed(shared_data: Path, tmp_path: Path) -> None:
    name = "tile6_part001"
    with Image.open(shared_data / "aerial" / "masks" / f"{name}.png") as file:
        values = np.asarray(file).copy()
    values[values == 0] = NODATA
    classes = [LabelClass(i, str(i), (40 * i, 255 - 40 * i, 99)) for i in range(1, 6)]
    labels = publish(tmp_path, values, classes=classes, kind="array", georef=Georef.pixels(), name=name)
    image = View.open(open_image(shared_data / "aerial" / "images" / f"{name}.jpg"))
    assert image.size == labels.size
    (path,) = EXPORTS["preview"](labels, tmp_path, image, {})
    with Image.open(path) as file:
        assert file.width <= 1600
