"""Whatever the layout of a TIFF, its pixels and validity are those that rasterio and tifffile find."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import rasterio
import tifffile
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning

from tiling import Box, Size, Spacing, View, open_image
from tiling.georef import box_corners

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
LOSSLESS = ("none", "deflate", "lzw", "zstd", "packbits")


def box_within(draw: Any, size: Size) -> Box:
    y, x = draw(st.integers(0, size.height - 1)), draw(st.integers(0, size.width - 1))
    return Box(y, x, draw(st.integers(1, size.height - y)), draw(st.integers(1, size.width - x)))


@st.composite
def rasters(draw: Any) -> tuple[Any, dict[str, Any], Box]:
    """Pixels (bands, H, W), how rasterio is to write them, and a part to read."""
    bands, height, width = draw(st.integers(1, 5)), draw(st.integers(1, 90)), draw(st.integers(1, 90))
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    pixels = rng.integers(0, 100, (bands, height, width)).astype(dtype)
    if dtype.startswith("float") and draw(st.booleans()):
        pixels[rng.random(pixels.shape) < 0.05] = np.nan
    options: dict[str, Any] = {"interleave": draw(st.sampled_from(["pixel", "band"]))}
    options["compress"] = draw(st.sampled_from(LOSSLESS))
    if options["compress"] in ("deflate", "lzw", "zstd") and draw(st.booleans()):
        options["predictor"] = 3 if dtype.startswith("float") else 2
    if draw(st.booleans()):
        side = st.sampled_from([16, 32, 48, 64])
        options |= {"tiled": True, "blockxsize": draw(side), "blockysize": draw(side)}
    else:
        options["blockysize"] = draw(st.integers(1, height))
    options["nodata"] = draw(st.sampled_from([None, 0, 7]))
    if options["nodata"] is not None:
        pixels[:, rng.random((height, width)) < 0.2] = options["nodata"]
    if draw(st.booleans()):
        options["BIGTIFF"] = "YES"
    if draw(st.booleans()):
        options["ENDIANNESS"] = "BIG"
    return pixels, options, box_within(draw, Size(height, width))


@settings(max_examples=120)
@given(rasters(), st.data())
def test_a_raster_of_any_layout_is_as_rasterio_reads_it(made: tuple[Any, dict[str, Any], Box], data: Any) -> None:
    pixels, options, box = made
    bands, height, width = pixels.shape
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tif"
        profile = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": pixels.dtype.name}
        place = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 5e5, 0, -0.5, 5e6), "photometric": "minisblack"}
        with rasterio.open(path, "w", **profile, **place, **options) as dataset:
            dataset.write(pixels)
        chosen = data.draw(st.lists(st.integers(1, bands), max_size=3))
        with open_image(path, bands=[str(i) for i in chosen]) as image, rasterio.open(path) as dataset:
            indexes = chosen or list(dataset.indexes)
            window = ((box.y, box.bottom), (box.x, box.right))
            expected = dataset.read(indexes, window=window)
            assert image.kind == "raster"
            assert image.dtype == pixels.dtype
            assert np.array_equal(image.read(box), expected.transpose(1, 2, 0), equal_nan=pixels.dtype.kind == "f")
            numbers = np.isfinite(expected).all(axis=0)
            masks = [dataset.read_masks(i, window=window) > 0 for i in indexes]
            assert np.array_equal(image.valid(box), np.logical_or.reduce(masks) & numbers)
        # The same file as a slide: tifffile knows nothing of nodata, and must find the same numbers.
        with open_image(path, reader="tiff") as slide:
            whole = pixels.transpose(1, 2, 0)
            assert np.array_equal(slide.read(box), whole[box.slices], equal_nan=pixels.dtype.kind == "f")


@st.composite
def slides(draw: Any) -> tuple[Any, dict[str, Any], Box]:
    """Pixels (H, W), (H, W, samples) or (samples, H, W), how tifffile is to write them, and a part to read."""
    samples, height, width = draw(st.sampled_from([1, 3, 4])), draw(st.integers(1, 90)), draw(st.integers(1, 90))
    dtype = draw(st.sampled_from([d for d in DTYPES if d != "int8"]))
    pixels = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 100, (height, width, samples)).astype(dtype)
    planar = samples > 1 and draw(st.booleans())
    options: dict[str, Any] = {"photometric": "rgb" if samples >= 3 else "minisblack"}
    if samples > 1:
        options["planarconfig"] = "separate" if planar else "contig"
    if samples == 4:
        options["extrasamples"] = ["unassalpha" if draw(st.booleans()) else "unspecified"]
    compression = draw(st.sampled_from(["none", "zlib", "lzw", "zstd", "lzma", "packbits"]))
    options["compression"] = None if compression == "none" else compression
    if draw(st.booleans()):
        options["tile"] = (draw(st.sampled_from([16, 32, 48])), draw(st.sampled_from([16, 32, 80])))
    else:
        options["rowsperstrip"] = draw(st.integers(1, height))
    options["byteorder"] = draw(st.sampled_from("<>"))
    options["bigtiff"] = draw(st.booleans())
    if samples == 1:
        return pixels[..., 0], options, box_within(draw, Size(height, width))
    return (pixels.transpose(2, 0, 1) if planar else pixels), options, box_within(draw, Size(height, width))


@settings(max_examples=120)
@given(slides())
def test_a_slide_of_any_layout_is_as_tifffile_reads_it(made: tuple[Any, dict[str, Any], Box]) -> None:
    pixels, options, box = made
    planar, alpha = options.get("planarconfig") == "separate", options.get("extrasamples") == ["unassalpha"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tif"
        writer = {name: options.pop(name) for name in ("byteorder", "bigtiff")}
        tifffile.imwrite(path, pixels, metadata=None, **writer, **options)
        with tifffile.TiffFile(path) as tif:
            read = tif.asarray()
        whole = read.transpose(1, 2, 0) if planar else read.reshape(*read.shape[:2], -1)
        with open_image(path) as image:
            assert image.levels[0].size == Size(*whole.shape[:2])
            colours = whole[..., :3] if alpha else whole
            assert np.array_equal(image.read(box), colours[box.slices])
            assert np.array_equal(image.valid(box), (whole[..., 3] > 0 if alpha else whole[..., 0] > -1)[box.slices])


PLACES = {
    "UTM": (32633, Affine(0.5, 0, 5e5, 0, -0.5, 5e6)),
    "turned": (32633, Affine.translation(5e5, 5e6) @ Affine.rotation(33) @ Affine.scale(0.5, -0.4)),
    "south-up": (4326, Affine(0.001, 0, 10, 0, 0.001, 40)),
    "degrees": (4326, Affine(0.0001, 0, 10, 0, -0.0002, 60)),
    "across the antimeridian": (4326, Affine(0.001, 0, 179.9, 0, -0.001, 10)),
    "Mercator across the antimeridian": (3857, Affine(10, 0, 20_037_000, 0, -10, 2e6)),
    "feet": (2263, Affine(1, 0, 980_000, 0, -1, 200_000)),
    "geostationary": ("+proj=geos +h=35785831 +lon_0=0 +sweep=y", Affine(3000, 0, -2e5, 0, -3000, 4e6)),
    "Moon": ("+proj=eqc +R=1737400 +units=m", Affine(5, 0, 1000, 0, -5, 2000)),
}


@pytest.mark.parametrize("name", PLACES)
def test_the_corners_of_every_view_are_those_of_the_file_to_a_hundredth_of_a_pixel(tmp_path: Path, name: str) -> None:
    crs, place = PLACES[name]
    path = tmp_path / "a.tif"
    profile = {"driver": "GTiff", "count": 1, "height": 301, "width": 403, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, crs=CRS.from_user_input(crs), transform=place) as dataset:
        dataset.write(np.ones((1, 301, 403), np.uint8))
        dataset.build_overviews([2, 4])
    with open_image(path) as image, rasterio.open(path) as dataset:
        native = image.georef.spacing(image.levels[0].size)
        assert native is not None
        steps = [None, *(Spacing.square(native.x * step, native.unit) for step in (0.7, 1.0, 1.7, 2.0, 3.3))]
        for spacing in steps:
            view = View.open(image, spacing)
            corners = box_corners(view.georef, view.size.box)
            at = [(0, 0), (0, dataset.width), (dataset.height, dataset.width), (dataset.height, 0)]
            expected = [dataset.xy(row, column, offset="ul") for row, column in at]
            off = ~dataset.transform
            for (x, y), (wanted_x, wanted_y) in zip(corners, expected, strict=True):
                column, row = off @ (x, y)
                wanted_column, wanted_row = off @ (wanted_x, wanted_y)
                assert abs(column - wanted_column) < 0.01
                assert abs(row - wanted_row) < 0.01


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "hamamatsu_test3-DAPI.ndpi"])
def test_the_corners_of_every_view_are_those_of_openslide_to_a_hundredth_of_a_pixel(
    shared_data: Path, name: str
) -> None:
    path = shared_data / "odd/wsi" / name
    with open_image(path) as image, openslide.OpenSlide(path) as slide:
        mpp = [float(slide.properties[f"openslide.mpp-{axis}"]) for axis in "xy"]
        expected = [side * um for side, um in zip(slide.dimensions, mpp, strict=True)]
        for um in (None, 0.2, 0.5, 0.7, 1.0, 2.0, 5.1):
            view = View.open(image, None if um is None else Spacing.square(um, "um"))
            assert view.georef.world(0, 0) == (0, 0)
            corner = view.georef.world(view.size.height, view.size.width)
            for side, wanted, step in zip(corner, expected, mpp, strict=True):
                assert abs(side - wanted) < 0.01 * step


def test_a_size_on_the_ground_is_right_across_the_antimeridian_and_off_the_earth(tmp_path: Path) -> None:
    found = {}
    for name in ("across the antimeridian", "Mercator across the antimeridian", "Moon", "geostationary"):
        crs, place = PLACES[name]
        profile = {"driver": "GTiff", "count": 1, "height": 301, "width": 403, "dtype": "uint8"}
        with rasterio.open(
            tmp_path / "a.tif", "w", **profile, crs=CRS.from_user_input(crs), transform=place
        ) as dataset:
            dataset.write(np.ones((1, 301, 403), np.uint8))
        with open_image(tmp_path / "a.tif") as image:
            found[name] = image.georef.spacing(image.levels[0].size)
    assert found["across the antimeridian"].x == pytest.approx(0.001 * 111_320 * np.cos(np.radians(9.85)), rel=0.01)
    assert found["Mercator across the antimeridian"].x == pytest.approx(10 * np.cos(np.radians(17.7)), rel=0.01)
    assert found["Moon"].x == pytest.approx(5, rel=0.01)
    assert 3000 < found["geostationary"].y < 9000, "the Earth curves away from the satellite"


def test_a_model_transformation_tag_is_the_place(tmp_path: Path) -> None:
    place = (0.5, 0.1, 0, 5e5, 0.2, -0.5, 0, 5e6, 0, 0, 0, 0, 0, 0, 0, 1)
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)
    tags = [(34264, 12, 16, place, True), (34735, 3, len(keys), keys, True)]
    tifffile.imwrite(tmp_path / "a.tif", np.ones((20, 30), np.uint8), extratags=tags, metadata=None)
    with open_image(tmp_path / "a.tif") as image, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        assert tuple(image.georef.transform)[:6] == (0.5, 0.1, 5e5, 0.2, -0.5, 5e6)
        with rasterio.open(tmp_path / "a.tif") as dataset:
            assert image.georef.transform == dataset.transform
