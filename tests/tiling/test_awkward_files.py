"""Awkward files, made on the spot: each reads as it should, or is refused in one line that says why."""

from __future__ import annotations

import os
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
import zarr
from affine import Affine
from PIL import Image

from tiling import Box, ImageError, open_image

RGB = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
ALL = Box(0, 0, 150, 200)
OME = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
GONE = (
    '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="200" SizeY="150" SizeC="2" '
    'SizeZ="1" SizeT="1"><Channel ID="Channel:0:0"/><Channel ID="Channel:0:1"/>'
    '<TiffData FirstC="0" IFD="0" PlaneCount="1"><UUID FileName="gone.ome.tif">urn:uuid:1</UUID></TiffData>'
    '<TiffData FirstC="1" IFD="0" PlaneCount="1"><UUID FileName="a.ome.tif">urn:uuid:2</UUID></TiffData>'
    "</Pixels></Image></OME>"
)


def tiff(path: Path, pixels: Any = RGB, **options: Any) -> Path:
    tifffile.imwrite(path, pixels, metadata=None, **{"photometric": "rgb"} | options)
    return path


def tiled(path: Path) -> Path:
    """Of 12 tiles."""
    return tiff(path, tile=(64, 64), compression="zlib")


def patched(path: Path, tag: str, form: str, value: int, at: int = 0) -> Path:
    """The tiled TIFF with one number of a tag's value changed; of 'next', where the second page would be."""
    content = bytearray(tiled(path).read_bytes())
    with tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        place = page.offset + 2 + 12 * len(page.tags) if tag == "next" else page.tags[tag].valueoffset
    struct.pack_into(form, content, place + at * struct.calcsize(form), value)
    path.write_bytes(bytes(content))
    return path


def cut(path: Path, length: int) -> Path:
    path.write_bytes(tiled(path).read_bytes()[:length])
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def bomb(path: Path) -> Path:
    """A PNG that says that it is 2**31 - 1 pixels high and wide."""
    Image.new("RGB", (4, 3)).save(path)
    content = bytearray(path.read_bytes())
    struct.pack_into(">II", content, 16, 2**31 - 1, 2**31 - 1)
    struct.pack_into(">I", content, 29, zlib.crc32(content[12:29]))
    return written(path, bytes(content))


def ome_zarr(path: Path, dataset: str) -> Path:
    """Axes in an odd order, (c, y, z, x), and an offset; only the dataset '0' is there."""
    group = zarr.open_group(path, mode="w")
    group.create_array("0", data=RGB.transpose(2, 0, 1)[:, :, None], chunks=(1, 64, 1, 64))
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": "micrometer"} for n in "yzx")]
    steps = [{"type": "scale", "scale": [1, 0.5, 1, 0.25]}, {"type": "translation", "translation": [0, 30, 0, 70]}]
    shared = [{"type": "scale", "scale": [1, 2, 1, 2]}, {"type": "translation", "translation": [0, 1, 0, 1]}]
    levels = [{"path": dataset, "coordinateTransformations": steps}]
    scales = [{"axes": axes, "datasets": levels, "coordinateTransformations": shared}]
    group.attrs.update({"ome": {"version": "0.5", "multiscales": scales}})
    return path


def raster(path: Path, **options: Any) -> Path:
    profile = {"driver": "GTiff", "count": 3, "height": 150, "width": 200, "dtype": "uint8", "crs": "EPSG:32633"}
    pixels = RGB.transpose(2, 0, 1).copy()
    pixels[:, 64:128, :64] = 0
    with rasterio.open(path, "w", **profile, transform=Affine(0.5, 0, 5e5, 0, -0.5, 5e6), **options) as dataset:
        dataset.write(pixels)
    return path


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "four bytes": (lambda d: cut(d / "a.tif", 4), "the file is damaged, or not of the kind that it says"),
    "nine bytes": (lambda d: cut(d / "a.tif", 9), "corrupted tag list"),
    "half": (lambda d: cut(d / "a.tif", 9000), "the file is cut off: its pixels reach to byte"),
    "zeros": (lambda d: written(d / "a.tif", bytes(5000)), "its content is not that of a .tif file"),
    "a tile beyond the end": (lambda d: patched(d / "a.tif", "TileOffsets", "<I", 2**31 - 1), "the file is cut off"),
    "a claim of 65535 rows": (lambda d: patched(d / "a.tif", "ImageLength", "<H", 65535), "its size needs 4096"),
    "no width": (lambda d: patched(d / "a.tif", "ImageWidth", "<H", 0), "a size must be positive"),
    "no bands": (lambda d: patched(d / "a.tif", "SamplesPerPixel", "<H", 0), "the file is damaged, or not of the kind"),
    "a name of two lines": (lambda d: cut(d / "a\nb.tif", 9), r"a\nb.tif: cannot be read: "),
    "a link to nothing": (lambda d: linked(d / "a.tif", d / "gone"), "no such file"),
    "a link to itself": (lambda d: linked(d / "a.tif", d / "a.tif"), "no such file"),
    "a pipe": (lambda d: pipe(d / "a.tif"), "is neither a file nor a folder"),
    "a name without end": (lambda d: d / ("a" * 5000), "cannot be read: File name too long"),
    "a file below a file": (lambda d: tiled(d / "a.tif") / "b.tif", "no such file"),
    "a folder": (lambda d: folder(d / "a.tif"), "is a folder, and not a Zarr array or a DICOM slide"),
    "Lab": (lambda d: tiff(d / "a.tif", photometric="cielab"), "its colours are cielab (compression none); save it as"),
    "an OME-TIFF whose other part is gone": (
        lambda d: tiff(d / "a.ome.tif", RGB[..., 0], photometric="minisblack", description=OME + GONE),
        "it is one part of an image spread over several files",
    ),
    "a PNG of 4 exapixels": (lambda d: bomb(d / "a.png"), "PNG can only be decoded whole; convert it to a tiled TIFF"),
    "a Zarr without its level": (lambda d: ome_zarr(d / "a.zarr", "1"), "its level '1' is not there"),
    "a Zarr from coarse to fine": (lambda d: upside_down(d / "a.zarr"), "its levels do not go from fine to coarse"),
    "a plate": (lambda d: plate(d / "a.zarr"), "is a Zarr group without 'multiscales', holding A; name the image"),
}


def linked(path: Path, to: Path) -> Path:
    path.symlink_to(to)
    return path


def pipe(path: Path) -> Path:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no pipes with names")
    os.mkfifo(path)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def upside_down(path: Path) -> Path:
    group = zarr.open_group(path, mode="w")
    for n, step in enumerate((2, 1)):
        group.create_array(str(n), data=RGB[::step, ::step, 0])
    axes = [{"name": name, "type": "space"} for name in "yx"]
    levels = [{"path": n, "coordinateTransformations": [{"type": "scale", "scale": [1, 1]}]} for n in "01"]
    group.attrs.update({"ome": {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}})
    return path


def plate(path: Path) -> Path:
    zarr.open_group(path, mode="w").create_group("A/1")
    return path


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    make, said = REFUSED[name]
    path = make(tmp_path)
    with pytest.raises(ImageError) as refused:
        open_image(path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", ""), "no library says more than we do"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_no_damaged_one(tmp_path: Path) -> None:
    path = tiled(tmp_path / "a.tif")
    path.chmod(0)
    with pytest.raises(ImageError, match="cannot be read: Permission denied"):
        open_image(path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' file names are text, and of fewer signs")
@pytest.mark.parametrize("make", [tiled, raster])
@pytest.mark.parametrize(
    "name",
    ["a b.tif", "-a.tif", ".a.tif", "ä日.tif", "a\nb.tif", "a%20b#c?.tif", "a'\"&.tif", "a", "by\udce9te.tif"],
)
def test_a_name_may_be_any(tmp_path: Path, name: str, make: Callable[[Path], Path]) -> None:
    path = Path(shutil.copy(make(tmp_path / "sound.tif"), tmp_path / name))
    if make is raster and "\udce9" in name:
        with pytest.raises(ImageError, match="its name is not UTF-8, and GDAL reads no other; rename it"):
            open_image(path)
        return
    with open_image(path) as image, open_image(tmp_path / "sound.tif") as same:
        assert np.array_equal(image.read(ALL), same.read(ALL))
        assert image.georef == same.georef


def test_pages_in_a_ring_are_read_once(tmp_path: Path) -> None:
    path = patched(tmp_path / "a.tif", "next", "<I", 8)
    with open_image(path) as image:
        assert np.array_equal(image.read(ALL), RGB)


def test_a_slide_that_leaves_a_tile_out_has_no_data_there(tmp_path: Path) -> None:
    path = patched(tmp_path / "a.tif", "TileByteCounts", "<I", 0, at=5)
    with open_image(path) as image:
        valid = np.ones((150, 200), bool)
        valid[64:128, 64:128] = False
        assert np.array_equal(image.valid(ALL), valid)
        assert np.array_equal(image.read(ALL), RGB * valid[..., None])


@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_a_raster_that_leaves_a_tile_out_has_no_data_there_at_any_level(tmp_path: Path, interleave: str) -> None:
    layout = {"tiled": True, "blockxsize": 64, "blockysize": 64, "SPARSE_OK": "TRUE", "interleave": interleave}
    path = raster(tmp_path / "a.tif", **layout)
    with rasterio.Env(SPARSE_OK_OVERVIEW="TRUE", GDAL_TIFF_OVR_BLOCKSIZE=64), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2])
        zeros = dataset.read(1, window=((64, 128), (0, 64)))
        assert not zeros.any()
    with open_image(path) as image:
        hole = Box(64, 0, 64, 64)
        expected = np.ones((150, 200), bool)
        expected[hole.slices] = False
        assert np.array_equal(image.valid(ALL), expected)
        assert image.blank(hole)
        assert not image.blank(Box(63, 0, 2, 9))
        assert image.valid(image.levels[1].size.box, 1).all(), "there a tile shows more than the hole"


@pytest.mark.parametrize(("dtype", "nodata"), [("float32", None), ("float32", -1.0), ("uint16", 7)])
def test_what_a_raster_leaves_out_is_no_data_whatever_else_says_what_is(
    tmp_path: Path, dtype: str, nodata: float | None
) -> None:
    path, pixels = tmp_path / "a.tif", np.full((128, 128), 5, dtype)
    pixels[3, 100] = 5 if nodata is None else nodata
    layout = {"tiled": True, "blockxsize": 64, "blockysize": 64, "SPARSE_OK": "TRUE", "nodata": nodata}
    place = {"crs": "EPSG:32617", "transform": Affine(2, 0, 500000, 0, -2, 5000000)}
    with rasterio.open(path, "w", "GTiff", 128, 128, 1, dtype=dtype, **layout, **place) as dataset:
        dataset.write(pixels[:64], 1, window=((0, 64), (0, 128)))
    expected = np.zeros((128, 128), bool)
    expected[:64] = True if nodata is None else pixels[:64] != nodata
    with open_image(path) as image:
        assert np.array_equal(image.valid(Box(0, 0, 128, 128)), expected)


def test_world_files_are_found_as_gdal_finds_them(tmp_path: Path) -> None:
    for name, beside in (("a.TIF", "a.TFW"), ("b.tiff", "b.tiffw"), ("c.tif", "c.wld"), ("d.PNG", "d.PGW")):
        if name.endswith("PNG"):
            Image.fromarray(RGB).save(tmp_path / name)
        else:
            tiled(tmp_path / name)
        (tmp_path / beside).write_text("2\n0\n0\n-2\n500001\n4999999\n")
        with open_image(tmp_path / name) as image, rasterio.open(tmp_path / name) as dataset:
            assert image.kind == "raster"
            assert image.georef.transform == dataset.transform == Affine(2, 0, 500000, 0, -2, 5000000)


def test_statistics_that_a_program_left_beside_a_slide_make_it_no_map(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", resolution=(20000, 20000), resolutionunit="CENTIMETER")
    said = (
        "<PAMDataset>{}<PAMRasterBand band='1'><Metadata><MDI key='STATISTICS_MEAN'>9</MDI></Metadata></PAMRasterBand>"
    )
    beside = tmp_path / "a.tif.aux.xml"
    beside.write_text(said.format("") + "</PAMDataset>")
    with open_image(path) as image:
        assert (image.kind, image.georef.unit) == ("slide", "um")
    beside.write_text(
        said.format("<SRS>EPSG:32633</SRS><GeoTransform>5e5,2,0,5e6,0,-2</GeoTransform>") + "</PAMDataset>"
    )
    with open_image(path) as image:
        assert (image.kind, image.georef.transform) == ("raster", Affine(2, 0, 5e5, 0, -2, 5e6))


def test_a_zarr_with_its_axes_in_any_order_is_where_it_says(tmp_path: Path) -> None:
    with open_image(ome_zarr(tmp_path / "a", "0")) as image:
        assert np.array_equal(image.read(ALL), RGB)
        assert image.georef.world(0, 0) == pytest.approx((141.0, 61.0))
        assert image.georef.world(1, 1) == pytest.approx((141.5, 62.0))


def test_of_a_file_with_several_images_the_names_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.gpkg"
    for n, table in enumerate(("near", "far")):
        options = {"APPEND_SUBDATASET": "YES"} if n else {}
        profile = {"driver": "GPKG", "count": 3, "height": 150, "width": 200, "dtype": "uint8", "crs": "EPSG:32633"}
        place = {"transform": Affine(0.5, 0, 5e5, 0, -0.5, 5e6), "RASTER_TABLE": table}
        with rasterio.open(path, "w", **profile, **place, **options) as dataset:
            dataset.write(RGB.transpose(2, 0, 1))
    with pytest.raises(ImageError, match=r"it holds 2 images \(near, far\); save the one that is meant, e.g. gdal"):
        open_image(path)
