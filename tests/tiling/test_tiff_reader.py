"""Slides: colours as OpenSlide shows them, every TIFF layout as tifffile decodes it, and no label in sight."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tiling import Box, ImageError, Size, Spacing, open_image
from tiling.readers.segments import LevelPixels
from tiling.readers.tiff import TiffSource

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (150, 200, 3), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((512, 512)))
APERIO = "Aperio Image Library v11.2.1\r\n512x512 |AppMag = 20|MPP = 0.4990"


def write(path: Path, pixels: NDArray[Any], **options: Any) -> Path:
    tifffile.imwrite(path, pixels, **options)
    return path


def spacing_of(path: Path) -> Spacing | None:
    with open_image(path) as image:
        return image.georef.spacing(image.levels[0].size)


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        (RGB, {"photometric": "rgb"}),
        (RGB, {"photometric": "rgb", "rowsperstrip": 7, "compression": "lzw", "predictor": True}),
        (RGB, {"photometric": "rgb", "tile": (64, 32), "compression": "zlib"}),
        (RGB, {"photometric": "rgb", "tile": (64, 64), "compression": "jpeg"}),
        (RGB, {"photometric": "rgb", "tile": (64, 64), "compression": "webp"}),
        (RGB, {"photometric": "rgb", "tile": (64, 64), "compression": "zstd", "bigtiff": True}),
        (RGB, {"photometric": "rgb", "tile": (64, 64), "compression": "jpeg2000"}),
        (RGB.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate", "tile": (64, 32)}),
        (RGB.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate", "rowsperstrip": 9}),
        (RGB.astype(np.uint16) * 257, {"photometric": "rgb", "byteorder": ">", "tile": (32, 32)}),
        (RGB.astype(np.float32), {"photometric": "rgb", "byteorder": ">"}),
        (RGB[..., 0], {"tile": (64, 64)}),
        (RGB[..., 0].astype(np.int16) - 100, {"compression": "packbits"}),
        (RGB[..., 0].astype(np.float64), {"compression": "zlib", "predictor": True, "rowsperstrip": 40}),
        (np.concatenate([RGB, RGB[..., :2]], axis=-1), {"photometric": "minisblack", "planarconfig": "contig"}),
    ],
)
def test_every_layout_reads_as_tifffile_decodes_it(tmp_path: Path, pixels: NDArray[Any], options: Any) -> None:
    path = write(tmp_path / "a.tif", pixels, **options)
    expected = tifffile.imread(path)
    if options.get("planarconfig") == "separate":
        expected = expected.transpose(1, 2, 0)
    expected = expected.reshape(150, 200, -1)
    with open_image(path) as image:
        assert image.kind == "slide"
        assert image.dtype == expected.dtype.newbyteorder("=")
        assert np.array_equal(image.read(Box(0, 0, 150, 200)), expected)
        assert np.array_equal(image.read(Box(61, 31, 70, 140)), expected[61:131, 31:171])
        assert image.valid(Box(0, 0, 150, 200)).all()


@pytest.mark.parametrize(
    ("axes", "shape", "left_out"),
    [("CYX", (4, 60, 50), []), ("ZCYX", (3, 2, 60, 50), ["Z"]), ("TCZYX", (2, 3, 4, 60, 50), ["T", "Z"])],
)
@pytest.mark.parametrize("kind", ["ome", "imagej"])
def test_channels_become_bands_and_other_axes_are_left_out_aloud(
    tmp_path: Path, axes: str, shape: tuple[int, ...], left_out: list[str], kind: str
) -> None:
    if kind == "imagej" and axes == "TCZYX":
        axes, shape = "TZCYX", (2, 4, 3, 60, 50)
    pixels = RNG.integers(0, 65535, shape, dtype=np.uint16)
    path = tmp_path / ("a.ome.tif" if kind == "ome" else "a.tif")
    tifffile.imwrite(path, pixels, **{kind: True}, metadata={"axes": axes})
    first = pixels[tuple(slice(None) if axis in "CYX" else 0 for axis in axes)]
    with open_image(path) as image:
        assert np.array_equal(image.read(Box(0, 0, 60, 50)), first.transpose(1, 2, 0))
        assert [w.split("axis ")[1][0] for w in image.warnings] == sorted(left_out, key=axes.index)
        assert all("only the first is read" in w for w in image.warnings)


def test_a_real_aperio_slide_has_openslides_colours_and_spacing(shared_data: Path) -> None:
    path = shared_data / "odd/wsi/CMU-1-Small-Region.svs"
    with open_image(path) as image, openslide.OpenSlide(path) as slide:
        expected = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
        assert np.array_equal(image.read(image.levels[0].size.box), expected)
        mpp = float(slide.properties["openslide.mpp-y"]), float(slide.properties["openslide.mpp-x"])
    assert spacing_of(path) == Spacing(*mpp, "um")


def test_a_real_hamamatsu_slide_has_openslides_spacing_at_every_level(shared_data: Path) -> None:
    path = shared_data / "odd/wsi/hamamatsu_test3-DAPI.ndpi"
    with open_image(path) as image, openslide.OpenSlide(path) as slide:
        mpp = float(slide.properties["openslide.mpp-y"])
        sizes = [(level.size.width, level.size.height) for level in image.levels]
        assert sizes == list(slide.level_dimensions[: len(sizes)])
    found = spacing_of(path)
    assert found is not None
    assert found.y == pytest.approx(mpp)


@pytest.mark.parametrize(("code", "ycbcr"), [(33003, True), (33005, False)])
def test_aperio_jpeg_2000_has_openslides_colours(tmp_path: Path, code: int, ycbcr: bool) -> None:
    stored = np.asarray(Image.fromarray(SMOOTH).convert("YCbCr")) if ycbcr else SMOOTH
    tiles = [
        imagecodecs.jpeg2k_encode(stored[y : y + 256, x : x + 256], level=0, codecformat="j2k", mct=False)
        for y in (0, 256)
        for x in (0, 256)
    ]
    path = tmp_path / "a.svs"
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            iter(tiles), shape=SMOOTH.shape, dtype="uint8", tile=(256, 256), compression=code, photometric="rgb",
            description=APERIO, metadata=None,
        )  # fmt: skip
    with open_image(path) as image, openslide.OpenSlide(path) as slide:
        expected = np.asarray(slide.read_region((0, 0), 0, (512, 512)))[..., :3]
        difference = image.read(Box(0, 0, 512, 512)).astype(int) - expected
    assert np.abs(difference).max() <= 2


def svs_with_label(path: Path) -> Path:
    with tifffile.TiffWriter(path) as writer:
        common: dict[str, Any] = {"photometric": "rgb", "metadata": None, "compression": "zlib"}
        writer.write(SMOOTH, tile=(128, 128), description=APERIO, **common)
        writer.write(SMOOTH[::4, ::4], description=APERIO, **common)
        writer.write(SMOOTH[::2, ::2], tile=(128, 128), description=APERIO, **common)
        writer.write(
            np.full((700, 600, 3), 99, np.uint8), description=APERIO + "label 600x700", subfiletype=1, **common
        )
        writer.write(np.full((900, 800, 3), 98, np.uint8), description=APERIO + "macro", subfiletype=9, **common)
    return path


def test_label_macro_and_thumbnail_are_never_exposed(tmp_path: Path, shared_data: Path) -> None:
    with open_image(svs_with_label(tmp_path / "a.svs")) as image:
        assert [level.size for level in image.levels] == [Size(512, 512), Size(256, 256)]
        assert np.array_equal(image.read(Box(0, 0, 512, 512)), SMOOTH)
        assert np.array_equal(image.read(Box(0, 0, 256, 256), 1), SMOOTH[::2, ::2])
    with open_image(shared_data / "odd/wsi/CMU-1-Small-Region.svs") as image:
        assert len(image.levels) == 1
        recorded = " ".join([*image.provenance.values(), *image.warnings, repr(image.georef)])
        assert set(image.provenance) == {"format", "compression", "tile", "colours"}
        for private in ("b414003d", "CPAPERIOCS", "12/29/09", "CMU-1|", "Date", "User"):
            assert private not in recorded


def test_an_ome_tiff_with_a_label_reads_the_specimen(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        label = np.full((900, 900, 3), 99, np.uint8)
        writer.write(label, photometric="rgb", metadata={"axes": "YXS", "Name": "Label image"})
        writer.write(RGB, photometric="rgb", tile=(64, 64), metadata={"axes": "YXS", "Name": "slide"})
    with open_image(path) as image:
        assert np.array_equal(image.read(image.levels[0].size.box), RGB)


@pytest.mark.parametrize(
    ("unit", "value", "um"), [("µm", 0.25, 0.25), ("nm", 250, 0.25), ("mm", 0.0005, 0.5), ("pixel", 1, None)]
)
def test_ome_pixel_sizes_are_read_in_their_own_unit(tmp_path: Path, unit: str, value: float, um: float | None) -> None:
    path = tmp_path / "a.ome.tif"
    metadata = {
        "axes": "CYX",
        "PhysicalSizeY": value,
        "PhysicalSizeYUnit": unit,
        "PhysicalSizeX": 2 * value,
        "PhysicalSizeXUnit": unit,
        "Channel": {"Name": ["DAPI", "CD3"]},
    }
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(RGB.transpose(2, 0, 1)[:2], subifds=1, tile=(64, 64), metadata=metadata)
        writer.write(RGB.transpose(2, 0, 1)[:2, ::2, ::2], subfiletype=1, tile=(64, 64))
    with open_image(path) as image:
        assert image.bands == ("DAPI", "CD3")
        assert [level.scale for level in image.levels] == [(1, 1), (2, 2)]
        assert np.array_equal(image.read(Box(0, 0, 75, 100), 1), RGB[::2, ::2, :2])
    found = spacing_of(path)
    assert (found is None) == (um is None)
    if found is not None and um is not None:
        assert (found.y, found.x) == (pytest.approx(um), pytest.approx(2 * um))


def test_imagej_pixel_sizes_are_read_in_micrometres(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB[..., 0], imagej=True, resolution=(4, 2), metadata={"unit": "um"})
    assert spacing_of(path) == Spacing(0.5, 0.25, "um")


@pytest.mark.parametrize(
    ("per_cm", "unit", "um"),
    [(20000, "centimeter", 0.5), (50800, "inch", 0.5), (28.35, "centimeter", None), (20000, "none", None)],
)
def test_resolution_tags_count_where_they_are_plausible(
    tmp_path: Path, per_cm: float, unit: str, um: float | None
) -> None:
    path = write(tmp_path / "a.tif", RGB, photometric="rgb", resolution=(per_cm, per_cm), resolutionunit=unit)
    found = spacing_of(path)
    assert (None if found is None else pytest.approx(found.y)) == um
    with open_image(path) as image:
        doubted = any("which no slide is: taken as unknown" in warning for warning in image.warnings)
    assert doubted == (per_cm < 100)


def test_philips_pixel_spacing_is_millimetres(tmp_path: Path) -> None:
    level = (
        '<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" '
        'Element="0x0030" PMSVR="IDoubleArray">"{0}" "{0}"</Attribute></DataObject>'
    )
    description = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport"><Array>'
        + level.format(0.00025)
        + level.format(0.0005)
        + "</Array></DataObject>"
    )
    path = tmp_path / "a.tiff"
    common: dict[str, Any] = {"tile": (128, 128), "photometric": "rgb", "metadata": None, "compression": "jpeg"}
    with tifffile.TiffWriter(path) as writer:
        writer.write(SMOOTH, software="Philips DP v1.0", description=description, **common)
        writer.write(SMOOTH[::2, ::2], description="level=1", **common)
    with open_image(path) as image:
        assert image.provenance["format"] == "Philips TIFF"
        assert len(image.levels) == 2
    assert spacing_of(path) == Spacing(0.25, 0.25, "um")


def test_a_pyramid_in_sub_images_is_read_at_every_level(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(SMOOTH, tile=(128, 128), subifds=2, photometric="rgb")
        writer.write(SMOOTH[::2, ::2], tile=(128, 128), subfiletype=1, photometric="rgb")
        writer.write(SMOOTH[::4, ::4], tile=(64, 64), subfiletype=1, photometric="rgb")
    with open_image(path) as image:
        assert [level.scale for level in image.levels] == [(1, 1), (2, 2), (4, 4)]
        assert [level.chunk for level in image.levels] == [Size(128, 128), Size(128, 128), Size(64, 64)]
        for i in range(3):
            assert np.array_equal(image.read(image.levels[i].size.box, i), SMOOTH[:: 2**i, :: 2**i])


def test_a_page_of_another_shape_is_not_taken_for_a_level(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(SMOOTH, tile=(128, 128), subifds=1, photometric="rgb")
        writer.write(SMOOTH[::2, ::4], tile=(128, 128), subfiletype=1, photometric="rgb")
    with open_image(path) as image:
        assert len(image.levels) == 1


def test_alpha_says_what_is_valid_and_is_no_band(tmp_path: Path) -> None:
    alpha = np.where(np.arange(200) < 90, 0, np.where(np.arange(200) < 100, 1, 255)).astype(np.uint8)
    rgba = np.dstack([RGB, np.broadcast_to(alpha, (150, 200))])
    for kind in ("unassalpha", "assocalpha"):
        path = write(tmp_path / f"{kind}.tif", rgba, photometric="rgb", extrasamples=[kind], tile=(64, 64))
        with open_image(path) as image:
            assert image.bands == ("red", "green", "blue")
            assert np.array_equal(image.read(Box(0, 0, 150, 200)), RGB)
            assert np.array_equal(image.valid(Box(3, 80, 9, 30)), np.broadcast_to(alpha[80:110] > 0, (9, 30)))


def test_a_fourth_sample_without_a_meaning_is_a_band(tmp_path: Path) -> None:
    four = np.dstack([RGB, RGB[..., :1]])
    path = write(tmp_path / "a.tif", four, photometric="rgb", extrasamples=["unspecified"])
    with open_image(path) as image:
        assert image.bands == ("red", "green", "blue", "band 4")
        assert np.array_equal(image.read(Box(0, 0, 150, 200)), four)


def test_nan_and_infinity_are_not_valid(tmp_path: Path) -> None:
    pixels = RGB[..., 0].astype(np.float32)
    pixels[3, 4], pixels[5, 6] = np.nan, np.inf
    with open_image(write(tmp_path / "a.tif", pixels)) as image:
        assert np.argwhere(~image.valid(Box(0, 0, 150, 200))).tolist() == [[3, 4], [5, 6]]


def test_tiles_that_the_file_leaves_out_are_not_valid(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", RGB, photometric="rgb", tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as tif:
        counts = list(tif.pages.first.databytecounts)
        counts[1] = 0
        tif.pages.first.tags["TileByteCounts"].overwrite(counts)
    expected = RGB.copy()
    expected[:64, 64:128] = 0
    with open_image(path) as image:
        assert np.array_equal(image.read(Box(0, 0, 150, 200)), expected)
        hole = np.zeros((150, 200), bool)
        hole[:64, 64:128] = True
        assert np.array_equal(image.valid(Box(0, 0, 150, 200)), ~hole)
        assert np.array_equal(image.valid(Box(50, 100, 30, 40)), ~hole[50:80, 100:140])


def test_white_is_zero_is_turned_round(tmp_path: Path) -> None:
    for dtype in (np.uint8, np.uint16):
        grey = RGB[..., 0].astype(dtype)
        path = write(tmp_path / f"{np.dtype(dtype)}.tif", grey, photometric="miniswhite")
        with open_image(path, indexed=True) as mask:
            assert np.array_equal(mask.read(mask.levels[0].size.box)[..., 0], grey), "a class is a number, not a shade"
        with open_image(path) as image:
            assert image.dtype == dtype
            assert np.array_equal(image.read(Box(0, 0, 150, 200))[..., 0], np.iinfo(dtype).max - grey)


def test_samples_of_four_bits_are_read_and_told(shared_data: Path) -> None:
    with open_image(shared_data / "odd/wsi/tiff_4bit.tif") as image:
        assert image.read(image.levels[0].size.box).max() == 15
        assert any("4-bit samples: values run from 0 to 15" in warning for warning in image.warnings)


@pytest.mark.parametrize(
    ("pixels", "options", "reason"),
    [
        (RGB[..., 0] > 9, {}, "its samples are 1-bit; expected integers or floats"),
        (RGB[..., 0].astype(np.complex64), {}, "its samples are complex numbers"),
        (RGB[..., 0].astype(np.float32), {"photometric": "miniswhite"}, "run from white to black"),
    ],
)
def test_what_is_no_intensity_is_refused(tmp_path: Path, pixels: NDArray[Any], options: Any, reason: str) -> None:
    path = write(tmp_path / "a.tif", pixels, **options)
    with pytest.raises(ImageError, match=rf"a\.tif: cannot be read: .*{reason}"):
        open_image(path)


def test_printing_colours_are_read_as_pillow_turns_them_into_rgb(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.dstack([RGB, RGB[..., :1]]), photometric="separated")
    with open_image(path) as image, Image.open(path) as picture:
        expected = np.asarray(picture.convert("RGB")).astype(int)
        assert image.bands == ("red", "green", "blue")
        assert np.abs(image.read(Box(0, 0, 150, 200)) - expected).max() <= 1  # they round differently


def test_a_palette_gives_its_colours_and_its_values_to_who_asks_for_them(tmp_path: Path) -> None:
    values = RGB[..., 0]
    colours = np.random.default_rng(1).integers(0, 256, (3, 256), dtype=np.uint16)
    path = write(tmp_path / "a.tif", values, photometric="palette", colormap=colours * 257, tile=(64, 64))
    with open_image(path) as image:
        assert image.bands == ("red", "green", "blue")
        assert np.array_equal(image.read(Box(3, 5, 100, 90)), colours.T[values[3:103, 5:95]])
        assert any("palette colours" in warning for warning in image.warnings)
    with open_image(path, indexed=True) as mask:
        assert np.array_equal(mask.read(Box(3, 5, 100, 90))[..., 0], values[3:103, 5:95])


def test_rows_spread_over_pages_are_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tif", np.zeros((30, 40, 4), np.uint8), photometric="minisblack", metadata={"axes": "YXC"}
    )
    with pytest.raises(ImageError, match="an image needs its rows and columns in one page"):
        open_image(path)


def test_an_image_over_several_files_is_refused(tmp_path: Path) -> None:
    parts = [tmp_path / f"part{i}.ome.tif" for i in range(2)]
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{0}">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="50" SizeY="60" SizeC="2" '
        'SizeZ="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        '<Channel ID="Channel:0:1" SamplesPerPixel="1"/>'
        '<TiffData FirstC="0" IFD="0" PlaneCount="1"><UUID FileName="part0.ome.tif">urn:uuid:0</UUID></TiffData>'
        '<TiffData FirstC="1" IFD="0" PlaneCount="1"><UUID FileName="part1.ome.tif">urn:uuid:1</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    for i, part in enumerate(parts):
        tifffile.imwrite(part, np.full((60, 50), i, np.uint8), description=xml.format(i), metadata=None)
    with pytest.raises(ImageError, match="one part of an image spread over several files"):
        open_image(parts[0])


def test_a_file_that_broke_off_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", RGB, photometric="rgb", tile=(64, 64))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5000])
    with pytest.raises(
        ImageError, match=r"the file is cut off: its pixels reach to byte \d+, it has \d+; copy it again"
    ):
        open_image(path)


def test_a_broken_tile_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", RGB, photometric="rgb", tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path) as tif:
        start = tif.pages.first.dataoffsets[5]
    content = bytearray(path.read_bytes())
    content[start : start + 60] = bytes(60)
    path.write_bytes(bytes(content))
    with open_image(path) as image:
        box = Box(64, 64, 64, 64)
        with pytest.raises(ImageError, match=r"a\.tif: cannot read rows 64\.\.128, columns 64\.\.128 of level 0: "):
            image.read(box)
        assert np.array_equal(image.read(Box(0, 0, 64, 64)), RGB[:64, :64])


def test_only_the_tiles_that_a_box_touches_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tif", RGB, photometric="rgb", tile=(64, 64), compression="zlib")
    decoded: list[int] = []
    decode = LevelPixels._decode

    def counted(self: LevelPixels, frame: int, index: int) -> NDArray[Any] | None:
        decoded.append(index)
        return decode(self, frame, index)

    monkeypatch.setattr(LevelPixels, "_decode", counted)
    with TiffSource(path) as image:
        assert decoded == []
        image.read(Box(70, 10, 50, 100))
        assert decoded == [4, 5]


def test_a_slide_that_moved_away_is_an_image_error(tmp_path: Path, shared_data: Path) -> None:
    path = tmp_path / "a.svs"
    shutil.copy(shared_data / "odd/wsi/openslide_small.svs", path)
    image = open_image(path)
    image.close()
    path.unlink()
    with pytest.raises(ImageError, match=r"a\.svs: cannot read rows 0\.\.2, columns 0\.\.2 of level 0: .*No such file"):
        image.read(Box(0, 0, 2, 2))


@pytest.fixture(autouse=True)
def quiet_tifffile(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "tifffile")
