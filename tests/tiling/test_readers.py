"""Every file reads as an independent reader reads it, or is refused in one line; and what holds for all readers."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import numpy as np
import openslide
import pydicom
import pytest
import rasterio
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mirax import write_mirax
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from tiling import Box, ImageError, Source, open_image
from tiling.readers import READERS
from tiling.readers.opened import OpenedImage, short_name

REFUSED = {
    "geo/complex_slc.tif": "complex radar data must be turned into amplitudes",
    "wsi/broken.svs": "its content is not that of a .svs file",
    "wsi/highdicom_seg_sm_dots_tiled_full.dcm": "it is a DICOM Segmentation Storage; expected a VL Whole Slide",
    "wsi/highdicom_seg_sm_labelmap_palette.dcm": "it is a DICOM object; expected a VL Whole Slide",
    "wsi/dicom_boxes/boxes_1.dcm": "it is a slide's label, overview or thumbnail; name a file of the specimen's image",
    "wsi/openslide_unopenable.tiff": "its compression, 52479, is not known here",
}
UNREADABLE = {"geo/corrupt.tif", "wsi/openslide_unreadable.svs"}
"""Files whose headers are sound and whose pixels are not."""
NOT_IMAGES = {"README.md"}


def odd_files() -> list[str]:
    root = Path(__file__).parents[2].parent / "shared/data/odd"
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.name not in NOT_IMAGES)
    return [str(p.relative_to(root)) for p in files if p.suffix not in (".msk", ".ovr")] or ["absent"]


def independent(path: Path) -> NDArray[Any]:
    """Level 0, (H, W, bands), as OpenSlide, pydicom, Pillow, tifffile or rasterio reads it."""
    if path.suffix in (".svs", ".ndpi"):
        with openslide.OpenSlide(path) as slide:
            return np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
    if path.suffix == ".dcm":
        return dicom_frames(path)
    if path.name in ("tiff_ojpeg_tile.tif", "tiff_ycbcr_subsampled.tif", "tiff_orientation6.tif"):
        with Image.open(path) as picture:  # which Pillow turns upright
            return np.array(picture).reshape(picture.height, picture.width, -1)
    if path.parent.name == "wsi":
        image = tifffile.imread(path)
        image = image[:, 0].transpose(1, 2, 0) if image.ndim == 4 else image  # the C x Z series, at Z = 0
        return image if image.ndim == 3 else image[..., None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            colours = [c.name for c in dataset.colorinterp]
            if "palette" in colours:
                table = np.zeros((256, 4), np.uint8)
                table[list(dataset.colormap(1))] = list(dataset.colormap(1).values())
                return table[dataset.read(1), :3]
            return np.moveaxis(dataset.read([i + 1 for i, c in enumerate(colours) if c != "alpha"]), 0, -1)


def dicom_frames(path: Path) -> NDArray[Any]:
    """The frames of a tiled DICOM image as pydicom decodes them, put side by side."""
    header = pydicom.dcmread(path)
    frames = header.pixel_array.reshape(-1, header.Rows, header.Columns, header.SamplesPerPixel)
    across = -(-header.TotalPixelMatrixColumns // header.Columns)
    rows = [np.concatenate(list(frames[i : i + across]), axis=1) for i in range(0, len(frames), across)]
    return np.concatenate(rows)[: header.TotalPixelMatrixRows, : header.TotalPixelMatrixColumns]


@pytest.mark.parametrize("name", odd_files())
def test_each_odd_file_reads_as_elsewhere_or_is_refused_in_one_line(name: str, shared_data: Path) -> None:
    path = shared_data / "odd" / name
    if name in REFUSED:
        with pytest.raises(ImageError) as refused:
            open_image(path)
        assert str(refused.value).startswith(f"{path}: ")
        assert REFUSED[name] in str(refused.value)
        assert "\n" not in str(refused.value)
        return
    with open_image(path) as image:
        box = image.levels[0].size.box
        assert image.name == short_name(name)
        if name in UNREADABLE:
            with pytest.raises(ImageError) as broken:
                image.read(box)
            assert str(broken.value).startswith(f"{path}: cannot read {box} of level 0: ")
            assert "\n" not in str(broken.value)
            return
        pixels = image.read(box)
        assert pixels.dtype == image.dtype
        assert pixels.shape == (box.height, box.width, len(image.bands))
        assert np.array_equal(pixels, independent(path), equal_nan=image.dtype.kind == "f")
        assert image.valid(box).shape == pixels.shape[:2]


@pytest.mark.parametrize("name", [name for name in odd_files() if name not in REFUSED and name not in UNREADABLE])
def test_every_level_spans_the_image_and_reads(name: str, shared_data: Path) -> None:
    with open_image(shared_data / "odd" / name) as image:
        full = image.levels[0].size
        for i, level in enumerate(image.levels):
            assert level.scale == (full.height / level.size.height, full.width / level.size.width)
            corner = Box(level.size.height - 1, level.size.width - 1, 1, 1)
            assert image.read(corner, i).shape == (1, 1, len(image.bands))
            assert image.valid(corner, i).shape == (1, 1)


def make_png(folder: Path) -> Any:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)).save(folder / "a.png")
    return folder / "a.png"


def make_dicom(odd: Path, folder: Path) -> Any:
    """The small slide repeated until it is large enough for these tests."""
    slide = pydicom.dcmread(odd / "wsi/highdicom_sm_image.dcm")
    frames = slide.pixel_array  # 25 of 10 x 10
    many = np.tile(frames, (40, 1, 1, 1))
    slide.TotalPixelMatrixRows, slide.TotalPixelMatrixColumns, slide.NumberOfFrames = 400, 250, 1000
    slide.PixelData = many.tobytes()
    slide.save_as(folder / "a.dcm")
    return folder / "a.dcm"


def make_mirax(folder: Path) -> Any:
    pixels = np.zeros((64 * 8, 64 * 8, 3), np.uint8)
    pixels[128:448, 192:512] = np.random.default_rng(0).integers(1, 256, (320, 320, 3))
    pixels[256:320, 256:320] = 0
    return write_mirax(folder / "a.mrxs", pixels, tile=64, levels=3)


def make_palette(folder: Path) -> Any:
    values = np.random.default_rng(0).integers(0, 9, (300, 200), dtype=np.uint8)
    colours = np.random.default_rng(1).integers(0, 256, (3, 256), dtype=np.uint16) * 257
    tifffile.imwrite(folder / "a.tif", values, photometric="palette", colormap=colours, tile=(64, 64))
    return folder / "a.tif"


def make_zarr(folder: Path) -> Any:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    zarr.create_array(folder / "a.zarr", data=pixels, chunks=(64, 64, 3))
    return folder / "a.zarr"


EXAMPLES: dict[str, Callable[[Path, Path], Any]] = {
    "svs": lambda odd, _: odd / "wsi/CMU-1-Small-Region.svs",
    "ndpi": lambda odd, _: odd / "wsi/hamamatsu_test3-DAPI.ndpi",
    "ome": lambda odd, _: odd / "wsi/ome_multi-channel-z-series.ome.tif",
    "geotiff": lambda odd, _: odd / "geo/naip_4band_2020.tif",
    "mask": lambda odd, _: odd / "geo/cog_rgb_internal_mask.tif",
    "dicom": lambda odd, folder: make_dicom(odd, folder),
    "mirax": lambda _, folder: make_mirax(folder),
    "turned": lambda odd, _: odd / "wsi/tiff_orientation6.tif",
    "palette": lambda _, folder: make_palette(folder),
    "png": lambda _, folder: make_png(folder),
    "zarr": lambda _, folder: make_zarr(folder),
    "numpy": lambda _, __: np.random.default_rng(0).normal(size=(300, 200, 2)),
}


@pytest.fixture(params=list(EXAMPLES))
def image(request: pytest.FixtureRequest, shared_data: Path, tmp_path: Path) -> Source:
    return open_image(EXAMPLES[request.param](shared_data / "odd", tmp_path))


def test_it_is_a_source(image: Source) -> None:
    assert isinstance(image, Source)
    assert image.levels[0].scale == (1.0, 1.0)
    assert len(set(image.bands)) == len(image.bands)


def test_a_part_equals_the_crop_of_the_whole(image: Source) -> None:
    whole = image.read(image.levels[0].size.box)
    for box in (Box(0, 0, 1, 1), Box(37, 61, 70, 90), Box(whole.shape[0] - 9, whole.shape[1] - 7, 9, 7)):
        assert np.array_equal(image.read(box), whole[box.slices])


def test_a_copy_that_travelled_reads_the_same(image: Source) -> None:
    box = Box(10, 20, 100, 90)
    copy = pickle.loads(pickle.dumps(image))
    assert np.array_equal(copy.read(box), image.read(box))
    assert np.array_equal(copy.valid(box), image.valid(box))
    assert (copy.levels, copy.georef, copy.bands, copy.name) == (image.levels, image.georef, image.bands, image.name)


def test_a_closed_image_opens_itself_again(image: Source) -> None:
    before = image.read(Box(10, 20, 30, 40))
    image.close()
    image.close()
    assert np.array_equal(image.read(Box(10, 20, 30, 40)), before)


def test_the_lazy_array_has_the_same_pixels_on_the_files_tile_borders(image: Source) -> None:
    for i, level in enumerate(image.levels):
        lazy = image.dask(i)
        assert lazy.shape == (level.size.height, level.size.width, len(image.bands))
        assert lazy.dtype == image.dtype
        for chunks, tile in zip(lazy.chunks, (level.chunk.height, level.chunk.width), strict=False):
            assert all(chunk % tile == 0 for chunk in chunks[:-1])
        with dask.config.set(scheduler="synchronous"):
            assert np.array_equal(lazy.compute(), image.read(level.size.box, i))


def test_threads_read_the_same_pixels_at_once(image: Source) -> None:
    size = image.levels[0].size
    generator = np.random.default_rng(1)
    corners = zip(generator.integers(0, size.height - 80, 60), generator.integers(0, size.width - 80, 60), strict=True)
    boxes = [Box(int(y), int(x), 80, 80) for y, x in corners]
    alone = [(image.read(box), image.valid(box)) for box in boxes]
    image.close()
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda box: (image.read(box), image.valid(box)), boxes))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one[0], other[0])
        assert np.array_equal(one[1], other[1])


def test_a_box_outside_is_refused_with_its_numbers(image: Source) -> None:
    size = image.levels[0].size
    for box in (Box(-1, 0, 2, 2), Box(0, 0, size.height + 1, 1), Box(size.height, 0, 1, 1)):
        for method in (image.read, image.valid):
            with pytest.raises(ImageError, match=f"{box} leaves level 0, which is {size}"):
                method(box)
    with pytest.raises(ImageError, match=f"level 99 was asked for, but it has levels 0..{len(image.levels) - 1}"):
        image.read(Box(0, 0, 1, 1), 99)


def test_what_one_reads_is_ones_own(image: Source) -> None:
    box = Box(0, 0, 20, 20)
    first, valid = image.read(box), image.valid(box)
    expected = first.copy(), valid.copy()
    first[:], valid[:] = 0, False
    assert np.array_equal(image.read(box), expected[0])
    assert np.array_equal(image.valid(box), expected[1])


def test_an_image_tells_what_it_is_and_no_warning_leaks(image: Source) -> None:
    size = image.levels[0].size
    assert f"{size}, {len(image.bands)} band" in repr(image)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.tif: no such file$"):
        open_image(tmp_path / "nowhere.tif")


def test_a_folder_that_is_no_zarr_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(
        ImageError, match="is a folder, and not a Zarr array or a DICOM slide; name the image file itself"
    ):
        open_image(tmp_path)


def test_an_empty_and_a_foreign_file_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty.tif").touch()
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "page.tif").write_text("<html>404</html>")
    with pytest.raises(ImageError, match="the file is empty; copy it again"):
        open_image(tmp_path / "empty.tif")
    with pytest.raises(ImageError, match="is no image that is read here; what is read: GeoTIFF, COG"):
        open_image(tmp_path / "notes.txt")
    with pytest.raises(ImageError, match=r"its content is not that of a \.tif file; it may be damaged, copy it again"):
        open_image(tmp_path / "page.tif")


def test_content_decides_and_not_the_ending(tmp_path: Path, shared_data: Path) -> None:
    disguised = tmp_path / "map.svs"
    disguised.write_bytes((shared_data / "odd/geo/RGB.byte.tif").read_bytes())
    slide = tmp_path / "slide.tif"
    slide.write_bytes((shared_data / "odd/wsi/openslide_small.svs").read_bytes())
    photo = tmp_path / "photo.tif"
    Image.new("RGB", (4, 3)).save(photo, "PNG")
    assert open_image(disguised).kind == "raster"
    assert open_image(slide).kind == "slide"
    assert open_image(photo).kind == "array"


def test_a_reader_can_be_named(shared_data: Path) -> None:
    path = shared_data / "odd/geo/RGB.byte.tif"
    assert open_image(path).kind == "raster"
    as_slide = open_image(path, reader="tiff")
    assert as_slide.kind == "slide"
    assert np.array_equal(as_slide.read(Box(0, 0, 50, 50)), open_image(path).read(Box(0, 0, 50, 50)))
    with pytest.raises(ValueError, match="there is no reader 'gdal'; the readers are raster, tiff, dicom, openslide"):
        open_image(path, reader="gdal")


def test_accepting_a_file_is_never_an_error(tmp_path: Path) -> None:
    (tmp_path / "cut.tif").write_bytes(b"II*\0\x08\0\0\0")
    for reader in READERS.values():
        for path in (tmp_path / "cut.tif", tmp_path / "missing.png", tmp_path):
            assert reader.accepts(str(path)) in (True, False)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b.tif", "b"),
        ("b.ome.tif", "b"),
        ("RGB.byte.tif", "RGB.byte"),
        ("s3://x/y.ome.zarr/", "y"),
        ("slide", "slide"),
        ("a/...png", "_png"),
        ("..png", "_png"),
        (".ome.tif", "_ome.tif"),
        ("a/..", "_"),
    ],
)
def test_the_short_name_drops_folders_and_ending(path: str, name: str) -> None:
    assert short_name(path) == name


def test_running_out_of_memory_is_not_blamed_on_the_file(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = open_image(shared_data / "odd/geo/RGB.byte.tif")

    def full(*_: object) -> NDArray[Any]:
        raise MemoryError

    assert isinstance(image, OpenedImage)
    monkeypatch.setattr(image, "_read", full)
    with pytest.raises(MemoryError):
        image.read(Box(0, 0, 1, 1))


def small_tiff(folder: Path) -> bytes:
    path = folder / "sound.tif"
    if not path.exists():
        pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        tifffile.imwrite(path, pixels, tile=(16, 16), compression="zlib", photometric="rgb", resolution=(20000, 20000))
    return path.read_bytes()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 400))
def test_a_damaged_tiff_is_refused_in_one_line_or_read(tmp_path: Path, damage: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(small_tiff(tmp_path))
    for place, value in damage:
        content[place] = value
    damaged = tmp_path / "damaged.tif"
    damaged.write_bytes(bytes(content[: len(content) - cut * (cut % 3 == 0)]))
    said = None
    try:
        with open_image(damaged) as image:
            size = image.levels[0].size
            box = Box(0, 0, min(size.height, 40), min(size.width, 50))
            image.read(box)
            image.valid(box)
    except ImageError as error:
        said = str(error)
    assert said is None or (said.startswith(str(damaged)) and "\n" not in said)
