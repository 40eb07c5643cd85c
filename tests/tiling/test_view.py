"""A view shows the image at the model's spacing: in its place, the same however it is cut, nothing bleeding in."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tiling import Box, Georef, ImageError, Size, Spacing, View, open_image
from tiling.readers.array import ArraySource
from tiling.resample import Taps

HALF_UM = Spacing.square(0.5, "um")
RNG = np.random.default_rng(0)
IMAGES: dict[str, NDArray[Any]] = {
    "uint8": RNG.integers(0, 256, (61, 83, 3), dtype=np.uint8),
    "uint16": RNG.integers(0, 65536, (61, 83, 2), dtype=np.uint16),
    "int16": RNG.integers(-3000, 3000, (61, 83, 1), dtype=np.int16),
    "float32": RNG.normal(size=(61, 83, 4)).astype(np.float32),
    "float64": RNG.normal(size=(61, 83, 1)),
}
HOLES = RNG.random((61, 83)) > 0.3
SPACINGS = st.sampled_from([0.2, 0.31, 0.45, 0.5, 0.53, 0.7, 1.0, 1.7, 4.0, 30.0])


def source(dtype: str = "uint8", *, holes: bool = False) -> ArraySource:
    return ArraySource(IMAGES[dtype], georef=Georef.micrometres(HALF_UM), valid=HOLES if holes else None)


def view(spacing: float, dtype: str = "uint8", *, holes: bool = False) -> View:
    return View.open(source(dtype, holes=holes), Spacing.square(spacing, "um"))


def pyramid(path: Path, size: Size, levels: list[int], step: float = 1.0) -> Path:
    """A GeoTIFF with overviews, pixels of `step` metres."""
    image = RNG.integers(1, 255, (3, size.height, size.width), dtype=np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=size.height, width=size.width, dtype="uint8", photometric="rgb",
        tiled=True, blockxsize=64, blockysize=64, crs="EPSG:32633", transform=Affine(step, 0, 5e5, 0, -step, 5e6),
    ) as dataset:  # fmt: skip
        dataset.write(image)
        dataset.build_overviews(levels)
    return path


@st.composite
def boxes(draw: st.DrawFn, size: Size) -> Box:
    y, x = draw(st.integers(0, size.height - 1)), draw(st.integers(0, size.width - 1))
    return Box.between(y, x, draw(st.integers(y + 1, size.height)), draw(st.integers(x + 1, size.width)))


@settings(max_examples=60)
@given(SPACINGS, st.sampled_from(list(IMAGES)), st.booleans(), st.data())
def test_reading_a_part_equals_cropping_the_whole(spacing: float, dtype: str, holes: bool, data: st.DataObject) -> None:
    whole = view(spacing, dtype, holes=holes)
    box = data.draw(boxes(whole.size))
    assert np.array_equal(whole.read(box), whole.read(whole.size.box)[box.slices])
    assert np.array_equal(whole.valid(box), whole.valid(whole.size.box)[box.slices])


def test_a_large_box_read_in_parts_has_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in IMAGES:
        shown = view(0.9, dtype, holes=True)
        whole = shown.read(shown.size.box), shown.valid(shown.size.box)
        with monkeypatch.context() as patch:
            patch.setattr("tiling.view._AT_ONCE", 300)
            assert np.array_equal(shown.read(shown.size.box), whole[0])
            assert np.array_equal(shown.valid(shown.size.box), whole[1])


@settings(max_examples=60)
@given(SPACINGS, st.booleans(), st.integers(-90, 60), st.integers(-90, 80), st.integers(1, 150), st.integers(1, 150))
def test_a_window_mirrors_the_image_at_its_edges(spacing: float, holes: bool, y: int, x: int, h: int, w: int) -> None:
    shown = view(spacing, holes=holes)
    box = Box(y, x, h, w)
    if box.intersect(shown.size.box) is None:
        with pytest.raises(ImageError, match="does not touch"):
            shown.window(box)
        return
    pixels, valid = shown.window(box)
    far = 250
    padded = np.pad(shown.read(shown.size.box), ((far, far), (far, far), (0, 0)), mode="symmetric")
    inside = np.pad(shown.valid(shown.size.box), far)
    moved = Box(box.y + far, box.x + far, box.height, box.width)
    assert np.array_equal(pixels, padded[moved.slices])
    assert np.array_equal(valid, inside[moved.slices])


def test_a_window_of_a_one_pixel_image_repeats_it() -> None:
    dot = View.open(ArraySource(np.full((1, 1), 7, np.uint8)))
    pixels, valid = dot.window(Box(-1, -2, 4, 5))
    assert np.array_equal(pixels, np.full((4, 5, 1), 7))
    assert np.argwhere(valid).tolist() == [[1, 2]]


@pytest.mark.parametrize("spacing", [0.2, 0.31, 0.7, 1.0, 1.7, 4.0, 30.0])
@pytest.mark.parametrize("dtype", list(IMAGES))
def test_resampling_is_what_pillow_computes(spacing: float, dtype: str) -> None:
    shown = view(spacing, dtype)
    assert shown.resampled
    size = (shown.size.width, shown.size.height)
    image = IMAGES[dtype]
    bands = [Image.fromarray(image[..., i].astype(np.float32)) for i in range(image.shape[-1])]
    expected = np.stack([np.asarray(band.resize(size, Image.Resampling.BILINEAR)) for band in bands], axis=-1)
    found = shown.read(shown.size.box)
    assert found.dtype == image.dtype
    tolerance = 0.51 if image.dtype.kind in "ui" else 1e-5
    assert np.allclose(found, expected, rtol=1e-5, atol=tolerance)


@given(st.floats(0.06, 12), st.integers(40, 70))
@settings(max_examples=40)
def test_a_ramp_is_not_shifted_and_strays_less_than_a_twelfth_of_a_pixel(spacing: float, length: int) -> None:
    y, x = np.mgrid[0:length, 0 : length + 13] + 0.5
    ramp = np.stack([y, x], axis=-1)
    shown = View.open(ArraySource(ramp, georef=Georef.micrometres(HALF_UM)), Spacing.square(spacing, "um"))
    found = shown.read(shown.size.box)
    rows = (np.arange(shown.size.height) + 0.5) * shown.scale[0]
    columns = (np.arange(shown.size.width) + 0.5) * shown.scale[1]
    margin = [max(1.0, s) for s in shown.scale]
    inner_rows = (rows > margin[0]) & (rows < length - margin[0])
    inner_columns = (columns > margin[1]) & (columns < length + 13 - margin[1])
    off_y = found[inner_rows, :, 0] - rows[inner_rows, None]
    off_x = found[:, inner_columns, 1] - columns[None, inner_columns]
    for off, step in ((off_y, margin[0]), (off_x, margin[1])):
        # Pillow's filter is sampled, not integrated: it strays by up to 0.072 pixels, to both sides alike.
        assert np.abs(off).max(initial=0) < step / 12
        assert abs(off.sum()) < 1e-6


@pytest.mark.parametrize("spacing", [0.2, 0.7, 4.0])
def test_a_constant_image_stays_that_constant(spacing: float) -> None:
    for value in (0, 1, 77, 255):
        flat = np.full((50, 40, 3), value, np.uint8)
        shown = View.open(ArraySource(flat, georef=Georef.micrometres(HALF_UM)), Spacing.square(spacing, "um"))
        assert (shown.read(shown.size.box) == value).all()


@pytest.mark.parametrize("spacing", [0.2, 0.7, 1.7])
def test_invalid_pixels_do_not_bleed(spacing: float) -> None:
    image = np.full((61, 83, 2), 10.0, np.float32)
    image[~HOLES] = np.nan
    clean = View.open(ArraySource(image, georef=Georef.micrometres(HALF_UM)), Spacing.square(spacing, "um"))
    pixels, valid = clean.window(clean.size.box)
    assert np.isfinite(pixels).all()
    assert np.allclose(pixels[valid], 10.0)

    poisoned = np.full((61, 83), 10, np.uint8)
    poisoned[~HOLES] = 255
    masked = ArraySource(poisoned, georef=Georef.micrometres(HALF_UM), valid=HOLES)
    shown = View.open(masked, Spacing.square(spacing, "um"))
    pixels, valid = shown.window(shown.size.box)
    assert (pixels[valid] == 10).all()
    assert 0 < valid.mean() < 1


def test_a_pixel_is_valid_where_half_of_it_is_data() -> None:
    mask = np.zeros((40, 40), bool)
    mask[:, 20:] = True
    image = ArraySource(np.ones((40, 40), np.uint8), georef=Georef.micrometres(HALF_UM), valid=mask)
    shown = View.open(image, Spacing.square(1.0, "um"))
    valid = shown.valid(shown.size.box)
    assert not valid[:, :10].any()
    assert valid[:, 10:].all()


@pytest.mark.parametrize("spacing", [0.2, 0.31, 0.47, 0.5, 0.7, 1.0, 1.7, 4.0, 30.0, 49.0])
def test_the_grid_spans_the_image_to_a_hundredth_of_a_pixel(spacing: float) -> None:
    shown = view(spacing)
    image = shown.source.levels[0].size
    size, level0 = shown.size, shown.source.georef
    for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
        here = np.array(shown.georef.world(y * size.height, x * size.width))
        there = np.array(level0.world(y * image.height, x * image.width))
        assert np.abs(here - there).max() < 0.01 * spacing
    assert size == Size(max(1, round(61 / shown.scale[0])), max(1, round(83 / shown.scale[1])))


def test_a_level_within_ten_percent_is_read_as_it_is(tmp_path: Path) -> None:
    image = open_image(pyramid(tmp_path / "p.tif", Size(256, 320), [2, 4, 8]))
    for wanted, level in ((1.0, 0), (1.05, 0), (0.95, 0), (1.85, 1), (2.1, 1), (3.7, 2), (4.3, 2), (8.0, 3)):
        shown = View.open(image, Spacing.square(wanted, "m"))
        assert (shown.level, shown.resampled) == (level, False), wanted
        assert shown.size == image.levels[level].size
        box = Box(3, 5, 20, 20)
        assert np.array_equal(shown.read(box), image.read(box, level))


def test_another_spacing_is_resampled_from_the_coarsest_level_that_is_finer(tmp_path: Path) -> None:
    image = open_image(pyramid(tmp_path / "p.tif", Size(256, 320), [2, 4, 8]))
    for wanted, level in ((0.5, 0), (1.5, 0), (1.75, 0), (3.0, 1), (5.0, 2), (7.0, 2), (30.0, 3)):
        shown = View.open(image, Spacing.square(wanted, "m"))
        assert (shown.level, shown.resampled) == (level, True), wanted
        expected = image.read(image.levels[level].size.box, level)
        resized = Image.fromarray(expected).resize((shown.size.width, shown.size.height), Image.Resampling.BILINEAR)
        difference = shown.read(shown.size.box).astype(int) - np.asarray(resized).astype(int)
        assert np.abs(difference).max() <= 1
        assert shown.note.startswith(f"read at level {level} (")
        assert shown.note.endswith(f"resampled to {wanted:g} m/px")


def test_pixels_that_are_not_square_become_square(shared_data: Path) -> None:
    chip = open_image(shared_data / "odd/geo/s2_chip_image.tif")
    shown = View.open(chip, Spacing.square(10, "m"))
    assert shown.resampled
    assert shown.spacing is not None
    assert (shown.spacing.y, shown.spacing.x) == (pytest.approx(10, rel=0.01), pytest.approx(10, rel=0.01))
    assert shown.size == Size(100, 79)


def test_without_a_wanted_spacing_level_0_is_read_natively(shared_data: Path) -> None:
    slide = open_image(shared_data / "odd/wsi/CMU-1-Small-Region.svs")
    shown = View.open(slide)
    assert (shown.level, shown.scale, shown.resampled, shown.size) == (0, (1.0, 1.0), False, slide.levels[0].size)
    assert shown.note == "read at level 0 (0.499 um/px)"
    assert shown.georef == slide.georef
    unknown = View.open(open_image(IMAGES["uint8"]))
    assert unknown.spacing is None
    assert "does not say how large its pixels are" in unknown.note


def test_a_file_that_says_no_spacing_gets_a_question_with_the_answer_in_it() -> None:
    unknown = open_image(IMAGES["uint8"])
    with pytest.raises(ImageError) as caught:
        View.open(unknown, HALF_UM)
    assert str(caught.value) == (
        "<array> does not say how large its pixels are and the model expects 0.5 um/px; state it with --spacing, "
        "e.g. --spacing 0.25um, or use --spacing native to read the pixels as they are"
    )
    answered = View.open(unknown, HALF_UM, stated=Spacing.square(0.25, "um"))
    assert answered.size == Size(30, 42)
    assert answered.georef.unit == "um"
    assert answered.georef.world(30, 42) == pytest.approx((83 * 0.25, 61 * 0.25))


def test_a_stated_spacing_overrides_the_files_own(shared_data: Path) -> None:
    slide = open_image(shared_data / "odd/wsi/CMU-1-Small-Region.svs")
    shown = View.open(slide, Spacing.square(1, "um"), stated=Spacing.square(0.25, "um"))
    assert shown.scale == pytest.approx((4, 4), rel=1e-3)
    assert shown.spacing is not None
    assert shown.spacing.y == pytest.approx(1, rel=1e-3)


def test_a_stated_spacing_leaves_a_map_where_its_crs_puts_it(shared_data: Path) -> None:
    chip = open_image(shared_data / "odd/geo/naip_4band_2020.tif")
    shown = View.open(chip, Spacing.square(10, "m"), stated=Spacing.square(5, "m"))
    assert shown.georef.crs == chip.georef.crs
    assert shown.georef.world(0, 0) == pytest.approx(chip.georef.world(0, 0))


def test_a_satellite_image_given_to_a_slide_model_is_refused(shared_data: Path) -> None:
    chip = open_image(shared_data / "odd/geo/naip_4band_2020.tif")
    with pytest.raises(
        ImageError, match=r"pixels of 5\.\d* m/px and the model expects 0\.5 um/px, more than a factor of 100"
    ):
        View.open(chip, HALF_UM)


def test_a_box_outside_the_view_is_refused_with_a_hint() -> None:
    shown = view(1.0)
    for box in (Box(-1, 0, 2, 2), Box(0, 0, shown.size.height + 1, 1)):
        with pytest.raises(ImageError, match=r"leaves the view, which is .*use window\(\) to pad"):
            shown.read(box)
        with pytest.raises(ImageError, match="leaves the view"):
            shown.valid(box)


def test_an_image_that_nobody_can_have_is_refused_at_its_own_pixels_and_not_at_coarser_ones(tmp_path: Path) -> None:
    (tmp_path / "a.vrt").write_text(
        '<VRTDataset rasterXSize="20000000" rasterYSize="20000000"><SRS>EPSG:3857</SRS>'
        '<GeoTransform>0,0.001,0,0,0,-0.001</GeoTransform><VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'
    )
    image = open_image(tmp_path / "a.vrt")
    with pytest.raises(ImageError, match="is 20000000 x 20000000 px: more than can be worked through at once"):
        View.open(image)
    assert View.open(image, Spacing.square(0.05, "m")).size.pixels < 2**40


def test_a_view_pickles_and_reads_the_same(shared_data: Path) -> None:
    shown = View.open(open_image(shared_data / "odd/wsi/CMU-1-Small-Region.svs"), Spacing.square(2, "um"))
    box = Box(40, 30, 50, 60)
    again = pickle.loads(pickle.dumps(shown))
    assert np.array_equal(again.read(box), shown.read(box))
    assert (again.size, again.georef, again.note) == (shown.size, shown.georef, shown.note)


@given(st.floats(0.01, 90), st.integers(1, 200), st.data())
@settings(max_examples=60)
def test_the_parts_of_a_pixel_add_up_to_one(factor: float, length: int, data: st.DataObject) -> None:
    count = max(1, round(length / factor))
    start = data.draw(st.integers(0, count - 1))
    taps = Taps.at(start, data.draw(st.integers(start + 1, min(count, start + 300))), length / count, length)
    assert np.allclose(taps.weight.sum(axis=1), 1)
    assert (taps.weight >= 0).all()
    assert 0 <= taps.first < taps.stop <= length
