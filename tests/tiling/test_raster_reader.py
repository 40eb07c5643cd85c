"""Rasters: pixels, places and masks as rasterio gives them, and a plain word where a map is not quite a map."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning

from tiling import Box, ImageError, Size, open_image
from tiling.readers.raster import RasterSource
from tiling.readers.segments import LevelPixels

RNG = np.random.default_rng(0)
PLACE = Affine(0.5, 0, 5e5, 0, -0.5, 5e6)
UTM = CRS.from_epsg(32633)


def write(
    path: Path, pixels: NDArray[Any], *, place: Affine | None = PLACE, crs: CRS | None = UTM, **options: Any
) -> Path:
    """A GeoTIFF of (bands, H, W)."""
    bands, height, width = pixels.shape
    profile = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": pixels.dtype.name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile, crs=crs, transform=place, **options) as dataset:
            dataset.write(pixels)
    return path


def noise(*shape: int, dtype: str = "uint8") -> NDArray[Any]:
    return RNG.integers(1, 127, shape).astype(dtype)


def everywhere(image: Any) -> Box:
    return image.levels[0].size.box


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"tiled": True, "blockxsize": 32, "blockysize": 16, "compress": "deflate"}])
def test_every_dtype_reads_as_written(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    pixels = noise(3, 70, 90, dtype=dtype)
    with open_image(write(tmp_path / "a.tif", pixels, **options)) as image:
        assert image.dtype == dtype
        assert np.array_equal(image.read(everywhere(image)), pixels.transpose(1, 2, 0))
        assert np.array_equal(image.read(Box(13, 21, 30, 40)), pixels[:, 13:43, 21:61].transpose(1, 2, 0))
        assert image.levels[0].chunk.width in (32, 90)


def test_the_place_of_each_corner_is_that_of_the_file(shared_data: Path) -> None:
    for name in ("RGBA.uint16.tif", "inverted_lat.tif", "green.tif", "cog_mars.tif"):
        path = shared_data / "odd/geo" / name
        with open_image(path) as image, rasterio.open(path) as dataset:
            assert image.georef.unit == "crs"
            assert image.georef.transform == dataset.transform
            assert CRS.from_user_input(image.georef.crs) == dataset.crs
            assert image.georef.world(dataset.height, 0) == dataset.xy(dataset.height, 0, offset="ul")


def test_a_rotated_raster_with_a_crs_keeps_its_rotation(tmp_path: Path) -> None:
    turned = PLACE @ Affine.rotation(30)
    with open_image(write(tmp_path / "a.tif", noise(1, 20, 30), place=turned)) as image:
        assert np.allclose(tuple(image.georef.transform), tuple(turned))
        assert image.warnings == ()


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("cog_gcps.tif", "is placed by ground control points only"),
        ("rpcs_only.tif", "is placed by RPCs only"),
    ],
)
def test_what_is_no_map_yet_is_used_in_pixels_and_said(shared_data: Path, name: str, word: str) -> None:
    with open_image(shared_data / "odd/geo" / name) as image:
        assert image.kind == "raster"
        assert image.georef.unit is None
        assert image.georef.world(3, 5) == (5, 3)
        assert any(word in warning for warning in image.warnings)
        assert image.georef.spacing(image.levels[0].size) is None


@pytest.mark.parametrize("name", ["rotated.tif", "float_nan.tif"])
def test_a_transform_without_a_crs_is_kept_and_said(shared_data: Path, name: str) -> None:
    path = shared_data / "odd/geo" / name
    with open_image(path) as image, rasterio.open(path) as dataset:
        assert dataset.crs is None
        assert image.georef.transform == dataset.transform != Affine.identity()
        assert (image.georef.unit, image.georef.spacing(image.levels[0].size)) == (None, None)
        assert any("has a transform but no CRS" in warning for warning in image.warnings)


def test_a_transform_without_a_crs_that_maps_an_area_to_a_line_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "a.vrt").write_text(
        '<VRTDataset rasterXSize="30" rasterYSize="20"><GeoTransform>5e5,2,0,5e6,0,0</GeoTransform>'
        '<VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'
    )
    with open_image(tmp_path / "a.vrt") as image:
        assert image.georef.world(3, 5) == (5, 3)
        assert any("maps an area to a line" in warning for warning in image.warnings)


def test_control_points_written_by_gdal_are_noticed(tmp_path: Path) -> None:
    points = [GroundControlPoint(0, 0, 10, 50), GroundControlPoint(0, 30, 11, 50), GroundControlPoint(20, 0, 10, 49)]
    path = write(tmp_path / "a.tif", noise(1, 20, 30), place=None, crs=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "r+") as dataset:
            dataset.gcps = (points, CRS.from_epsg(4326))
    with open_image(path) as image:
        assert any("ground control points" in warning for warning in image.warnings)


def test_a_world_file_beside_a_plain_tiff_makes_it_a_raster(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise(1, 20, 30), place=None, crs=None)
    assert open_image(path).kind == "slide"
    (tmp_path / "a.tfw").write_text("2\n0\n0\n-2\n500001\n4999999\n")
    with open_image(path) as image:
        assert image.kind == "raster"
        assert image.georef.transform == Affine(2, 0, 500000, 0, -2, 5000000)
        assert any("has a transform but no CRS" in warning for warning in image.warnings)


def test_bands_are_named_by_colour_then_description_then_number(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise(5, 20, 30), photometric="rgb")
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("B04", None, None, "nir", None)
    with open_image(path) as image:
        assert image.bands == ("red", "green", "blue", "nir", "band 5")


def test_two_bands_never_share_a_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise(3, 20, 30), photometric="minisblack")
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("VV", "VV", "VH")
    with open_image(path) as image:
        assert image.bands == ("VV", "band 2", "VH")


def test_a_band_that_is_described_as_infrared_is_no_alpha(tmp_path: Path) -> None:
    pixels = noise(4, 20, 30)
    pixels[3, :, :9] = 0
    path = write(tmp_path / "a.tif", pixels)
    assert open_image(path).bands == ("red", "green", "blue"), "GDAL marks the fourth as alpha"
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("NIR", "Blue", "Red", "Green")
    with open_image(path) as image:
        assert image.bands == ("NIR", "Blue", "Red", "Green")
        assert np.array_equal(image.read(everywhere(image)), pixels.transpose(1, 2, 0))
        assert image.valid(everywhere(image)).all()
        assert np.array_equal(image.dask().compute(), pixels.transpose(1, 2, 0))


def test_alpha_is_no_band_wherever_it_stands(tmp_path: Path) -> None:
    pixels = noise(4, 20, 30)
    pixels[0, :, :9] = 0
    path = write(tmp_path / "a.tif", pixels)
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = (ColorInterp.alpha, ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    with open_image(path) as image:
        assert image.bands == ("red", "green", "blue")
        assert np.array_equal(image.read(everywhere(image)), pixels[1:].transpose(1, 2, 0))
        assert np.array_equal(image.valid(everywhere(image)), pixels[0] > 0)


@pytest.mark.parametrize(
    "name",
    [
        "RGB.byte.tif", "RGB2.byte.tif", "RGBA.uint16.tif", "all-nodata.tif", "cog_float32_nodata0.tif",
        "cog_rgb_internal_mask.tif", "float_nan.tif", "inverted_lat.tif", "naip_4band_2020.tif", "rpcs_only.tif",
        "s2_chip_image.tif", "single_band_nir_epsg3857.tif", "cog_webp.tif",
    ],
)  # fmt: skip
def test_valid_pixels_are_those_of_gdals_dataset_mask(shared_data: Path, name: str) -> None:
    path = shared_data / "odd/geo" / name
    with open_image(path) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            # GDAL calls NaN valid where the nodata value is another one.
            numbers = np.isfinite(dataset.read()).all(axis=0)
            assert np.array_equal(image.valid(everywhere(image)), (dataset.dataset_mask() > 0) & numbers)


def test_nodata_counts_where_all_bands_have_it_and_nan_where_any_has(tmp_path: Path) -> None:
    pixels = noise(2, 3, 4, dtype="float32")
    pixels[0, 0, 0] = pixels[:, 1, 1] = -9999
    pixels[1, 2, 2], pixels[0, 2, 3] = np.nan, np.inf
    with open_image(write(tmp_path / "a.tif", pixels, nodata=-9999)) as image:
        assert np.argwhere(~image.valid(everywhere(image))).tolist() == [[1, 1], [2, 2], [2, 3]]


def test_a_nodata_value_that_is_rounded_by_float32_is_recognised(tmp_path: Path) -> None:
    lowest = float(np.finfo("float32").min)
    for value in (lowest, -3.4e38, 0.1):
        pixels = noise(1, 3, 4, dtype="float32")
        pixels[0, 1, 2] = value
        with open_image(write(tmp_path / "a.tif", pixels, nodata=value)) as image:
            assert np.argwhere(~image.valid(everywhere(image))).tolist() == [[1, 2]]


@pytest.mark.parametrize("internal", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("compress", ["none", "deflate", "lerc"])
def test_nodata_nan_mask_and_alpha_all_count_at_once(tmp_path: Path, internal: bool, dtype: str, compress: str) -> None:
    pixels = noise(4, 32, 32, dtype=dtype)
    pixels[:3, 0], pixels[3], pixels[3, 1] = 0, 255, 0
    if dtype == "float32":
        pixels[1, 3, :], pixels[2, 4, 5] = np.nan, np.inf
    mask = np.full((32, 32), 255, np.uint8)
    mask[2] = 0
    path = write(tmp_path / "a.tif", pixels, nodata=0, photometric="rgb", alpha="yes", compress=compress)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    with open_image(path) as image:
        found = np.flatnonzero(~image.valid(everywhere(image)).all(axis=1)).tolist()
        assert found == ([0, 1, 2] if dtype == "uint8" else [0, 1, 2, 3, 4])


@pytest.mark.parametrize("internal", [True, False])
@pytest.mark.parametrize("mask_first", [True, False])
def test_a_mask_reaches_every_overview_however_it_was_added(tmp_path: Path, internal: bool, mask_first: bool) -> None:
    path = write(tmp_path / "a.tif", noise(3, 512, 512), tiled=True, blockxsize=128, blockysize=128)
    mask = np.zeros((512, 512), np.uint8)
    mask[:, 128:] = 255
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        for step in ("mask", "overviews") if mask_first else ("overviews", "mask"):
            with rasterio.open(path, "r+") as dataset:
                if step == "mask":
                    dataset.write_mask(mask)
                else:
                    dataset.build_overviews([2, 4], Resampling.nearest)
    with open_image(path) as image:
        for i, level in enumerate(image.levels):
            valid = image.valid(level.size.box, i)
            assert np.array_equal(valid, mask[:: 2**i, :: 2**i] > 0)
            assert np.array_equal(image.valid(Box(7, 9, 50, 70), i), valid[7:57, 9:79])


def test_overviews_are_levels_read_from_the_file(shared_data: Path) -> None:
    for name in ("cog_mars.tif", "green.tif", "naip_4band_2020.tif", "cog_gcps.tif"):
        path = shared_data / "odd/geo" / name
        with open_image(path) as image, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            for i in range(len(image.levels) - 1):
                with rasterio.open(path, overview_level=i) as overview:
                    assert image.levels[i + 1].size == Size(overview.height, overview.width)
                    expected = np.moveaxis(overview.read(), 0, -1)
                assert np.array_equal(image.read(image.levels[i + 1].size.box, i + 1), expected)


def test_scale_and_offset_are_told_and_not_applied(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise(1, 20, 30, dtype="uint16"))
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.0001,), (-0.1,)
        raw = dataset.read(1)
    with open_image(path) as image:
        assert np.array_equal(image.read(everywhere(image))[..., 0], raw)
        assert any("scale and offset" in warning for warning in image.warnings)


def test_jpeg_2000_is_a_raster(tmp_path: Path) -> None:
    pixels = noise(3, 128, 128)
    profile = {"driver": "JP2OpenJPEG", "count": 3, "height": 128, "width": 128, "dtype": "uint8"}
    path = tmp_path / "a.jp2"
    with rasterio.open(path, "w", **profile, crs=UTM, transform=PLACE, QUALITY="100", REVERSIBLE="YES") as dataset:
        dataset.write(pixels)
    with open_image(path) as image:
        assert image.kind == "raster"
        assert image.georef.transform == PLACE
        assert np.array_equal(image.read(everywhere(image)), pixels.transpose(1, 2, 0))


def test_masks_of_single_bands_count(tmp_path: Path) -> None:
    write(tmp_path / "data.tif", noise(2, 40, 60))
    masks = (RNG.random((2, 40, 60)) > 0.5).astype(np.uint8) * np.uint8(255)
    write(tmp_path / "masks.tif", masks)

    def band(number: int, file: str, inside: str = "", which: str = "") -> str:
        source = f'<SourceFilename relativeToVRT="1">{file}</SourceFilename><SourceBand>{number}</SourceBand>'
        simple = f"<SimpleSource>{source}</SimpleSource>"
        return f'<VRTRasterBand dataType="Byte"{which}>{simple}{inside}</VRTRasterBand>'

    bands = "".join(band(i, "data.tif", f"<MaskBand>{band(i, 'masks.tif')}</MaskBand>", f' band="{i}"') for i in (1, 2))
    place = "<SRS>EPSG:32633</SRS><GeoTransform>5e5,0.5,0,5e6,0,-0.5</GeoTransform>"
    (tmp_path / "a.vrt").write_text(f'<VRTDataset rasterXSize="60" rasterYSize="40">{place}{bands}</VRTDataset>')
    with rasterio.open(tmp_path / "a.vrt") as dataset, open_image(tmp_path / "a.vrt") as image:
        assert np.array_equal(image.valid(image.levels[0].size.box), dataset.dataset_mask() > 0)
        assert np.array_equal(image.valid(Box(5, 7, 20, 30)), (masks > 0).any(axis=0)[5:25, 7:37])
        image.choose(["2"])
        assert np.array_equal(image.valid(Box(5, 7, 20, 30)), masks[1, 5:25, 7:37] > 0)


def test_a_mosaic_in_a_vrt_is_a_raster(tmp_path: Path) -> None:
    halves = noise(2, 1, 20, 30)
    bands = ""
    for i, half in enumerate(halves):
        write(tmp_path / f"{i}.tif", half)
        bands += (
            f'<SimpleSource><SourceFilename relativeToVRT="1">{i}.tif</SourceFilename><SourceBand>1</SourceBand>'
            f'<SrcRect xOff="0" yOff="0" xSize="30" ySize="20"/>'
            f'<DstRect xOff="{30 * i}" yOff="0" xSize="30" ySize="20"/></SimpleSource>'
        )
    (tmp_path / "mosaic.vrt").write_text(
        '<VRTDataset rasterXSize="60" rasterYSize="20"><SRS>EPSG:32633</SRS><GeoTransform>5e5,0.5,0,5e6,0,-0.5'
        f'</GeoTransform><VRTRasterBand dataType="Byte" band="1">{bands}</VRTRasterBand></VRTDataset>'
    )
    with open_image(tmp_path / "mosaic.vrt") as image:
        assert image.georef.transform == PLACE
        assert np.array_equal(image.read(everywhere(image))[..., 0], np.hstack([halves[0, 0], halves[1, 0]]))


def test_bands_of_several_number_types_and_nodata_values_are_read_together(tmp_path: Path) -> None:
    pixels = noise(3, 20, 30)
    write(tmp_path / "a.tif", pixels)
    bands = "".join(
        f'<VRTRasterBand dataType="{dtype}" band="{band}"><NoDataValue>{nodata}</NoDataValue><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">a.tif</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource>'
        "</VRTRasterBand>"
        for band, (dtype, nodata) in enumerate((("Byte", 0), ("Int16", -1), ("Float32", 7)), 1)
    )
    place = "<SRS>EPSG:32633</SRS><GeoTransform>5e5,0.5,0,5e6,0,-0.5</GeoTransform>"
    (tmp_path / "a.vrt").write_text(f'<VRTDataset rasterXSize="30" rasterYSize="20">{place}{bands}</VRTDataset>')
    with open_image(tmp_path / "a.vrt") as image, rasterio.open(tmp_path / "a.vrt") as dataset:
        assert image.dtype == np.float32
        each = [dataset.read(band) for band in (1, 2, 3)]
        assert np.array_equal(image.read(everywhere(image)), np.stack(each, axis=-1).astype(np.float32))
        assert np.array_equal(image.valid(everywhere(image)), dataset.dataset_mask() > 0)


def test_only_the_bad_block_of_a_corrupt_file_fails(shared_data: Path) -> None:
    path = shared_data / "odd/geo/corrupt.tif"
    with open_image(path) as image:
        outcome = []
        for y in (0, 512):
            for x in (0, 512):
                try:
                    outcome.append(image.read(Box(y, x, 512, 512)).shape)
                except ImageError as error:
                    outcome.append(str(error).split(": ")[1])
        assert outcome.count((512, 512, 3)) == 3
        assert sum(str(o).startswith("cannot read rows") for o in outcome) == 1


def test_a_raster_that_is_no_raster_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.vrt").write_text("<VRTDataset>")
    with pytest.raises(ImageError, match=r"a\.vrt: cannot be read: "):
        open_image(tmp_path / "a.vrt")
    (tmp_path / "a.jp2").write_bytes(b"nothing")
    with pytest.raises(
        ImageError, match=r"a\.jp2: cannot be read: .*not recognized as being in a supported file format"
    ):
        open_image(tmp_path / "a.jp2")


READ_ALL = """
import sys
from tiling import Box, open_image
from tiling.readers import raster
def mib(key):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(key))
raster.CACHE = 8 << 20
with open_image(sys.argv[1]) as image:
    image.read(Box(0, 0, 512, 512))
    start = mib("VmRSS")
    for y in range(0, 6144, 512):
        for x in range(0, 6144, 512):
            image.read(Box(y, x, 512, 512))
            image.valid(Box(y, x, 512, 512))
print(mib("VmHWM") - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc to see a process's memory")
def test_reading_a_whole_raster_keeps_no_more_of_it_than_the_cache_may_hold(tmp_path: Path) -> None:
    pixels = np.zeros((3, 6144, 6144), np.uint8)
    path = write(tmp_path / "a.tif", pixels, tiled=True, blockxsize=512, blockysize=512, compress="deflate", nodata=7)
    done = subprocess.run([sys.executable, "-c", READ_ALL, str(path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 40 < pixels.nbytes / 2**20


def test_a_lossless_geotiff_is_decoded_once_a_tile_with_its_alpha_and_nodata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = noise(4, 200, 300, dtype="uint16")
    layout = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate", "alpha": "yes", "nodata": 0}
    path = write(tmp_path / "a.tif", pixels, photometric="rgb", **layout)
    decoded = []
    decode = LevelPixels._decode
    monkeypatch.setattr(LevelPixels, "_decode", lambda *args: decoded.append(args[1:]) or decode(*args))
    with open_image(path) as image:
        for box in (Box(10, 20, 100, 90), Box(30, 10, 60, 100)):
            assert np.array_equal(image.read(box), pixels[:3, *box.slices].transpose(1, 2, 0))
            assert np.array_equal(image.valid(box), (pixels[3] > 0)[box.slices] & (pixels[:3] > 0).any(0)[box.slices])
        assert len(decoded) == len(set(decoded)) == 4


def test_a_jpeg_geotiff_has_gdals_colours(tmp_path: Path) -> None:
    layout = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "jpeg"}
    path = write(tmp_path / "a.tif", noise(3, 200, 300), photometric="ycbcr", **layout)
    with open_image(path) as image, rasterio.open(path) as dataset:
        assert np.array_equal(image.read(everywhere(image)), np.moveaxis(dataset.read(), 0, -1))


def test_handles_are_returned_and_reused(tmp_path: Path) -> None:
    image = RasterSource(write(tmp_path / "a.tif", noise(1, 20, 30)))
    for _ in range(5):
        image.read(Box(0, 0, 5, 5))
    assert sum(map(len, image._idle.values())) == 1
    image.close()
    assert sum(map(len, image._idle.values())) == 0
