"""Photographs: pixels as Pillow shows them upright, alpha as validity, and palettes refused."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import rasterio
from PIL import Image, ImageOps

from tiling import Box, ImageError, Size, open_image
from tiling.readers.flat import FlatSource

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (60, 50, 3), dtype=np.uint8)
ALL = Box(0, 0, 60, 50)


@pytest.mark.parametrize(("ending", "options"), [("png", {}), ("jpg", {"quality": 90}), ("bmp", {}), ("webp", {})])
def test_each_format_reads_as_pillow_decodes_it(tmp_path: Path, ending: str, options: dict[str, Any]) -> None:
    path = tmp_path / f"photo.{ending}"
    for pixels in (RGB, RGB[..., 0]):
        Image.fromarray(pixels).save(path, **options)
        with open_image(path) as image, Image.open(path) as expected:
            assert (image.kind, image.name, image.georef.unit) == ("array", "photo", None)
            assert len(image.levels) == 1
            assert np.array_equal(image.read(ALL), np.asarray(expected).reshape(60, 50, -1))
            assert image.valid(ALL).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_says_what_is_valid(tmp_path: Path, mode: str) -> None:
    photo = Image.fromarray(RGB).convert(mode)
    alpha = np.where(RNG.random((60, 50)) > 0.5, 200, 0).astype(np.uint8)
    photo.putalpha(Image.fromarray(alpha))
    photo.save(tmp_path / "a.png")
    with open_image(tmp_path / "a.png") as image:
        assert image.bands == (("red", "green", "blue") if mode == "RGBA" else ("band 1",))
        assert np.array_equal(image.valid(ALL), alpha > 0)
        assert np.array_equal(image.read(ALL), np.asarray(photo)[..., :-1])


def test_a_transparent_colour_is_not_valid(tmp_path: Path) -> None:
    pixels = RGB.copy()
    pixels[:9] = (1, 2, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=(1, 2, 3))
    with open_image(tmp_path / "a.png") as image:
        assert np.array_equal(image.valid(ALL), np.arange(60)[:, None].repeat(50, 1) >= 9)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_upright_as_its_exif_says(tmp_path: Path, orientation: int, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(path, exif=exif)
    with open_image(path) as image, Image.open(path) as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored))
        assert image.levels[0].size == Size(*upright.shape[:2])
        assert np.array_equal(image.read(image.levels[0].size.box), upright)


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_png_of_16_bits_keeps_all_of_them(tmp_path: Path, bands: int) -> None:
    pixels = RNG.integers(0, 65536, (60, 50, bands), dtype=np.uint16)
    if bands in (2, 4):
        pixels[..., -1] = np.where(RNG.random((60, 50)) > 0.5, 40000, 0)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels if bands > 1 else pixels[..., 0]))
    with open_image(tmp_path / "a.png") as image:
        count = 3 if bands > 2 else 1
        assert image.dtype == np.uint16
        assert len(image.bands) == count
        assert np.array_equal(image.read(ALL), pixels[..., :count])
        assert np.array_equal(image.valid(ALL), pixels[..., -1] > 0 if bands in (2, 4) else np.ones((60, 50), bool))


@pytest.mark.parametrize(
    ("mode", "ending", "reason"),
    [
        ("1", "png", "its samples are 1-bit"),
        ("CMYK", "jpg", "its colours are CMYK; save it as RGB or greyscale"),
    ],
)
def test_what_is_no_intensity_is_refused(tmp_path: Path, mode: str, ending: str, reason: str) -> None:
    Image.fromarray(RGB).convert(mode).save(tmp_path / f"a.{ending}")
    with pytest.raises(ImageError, match=rf"a\.{ending}: cannot be read: {reason}"):
        open_image(tmp_path / f"a.{ending}")


def huge_png(path: Path, height: int, width: int) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return path


def test_beyond_two_gigapixels_a_tiled_format_is_advised(tmp_path: Path) -> None:
    with pytest.raises(
        ImageError, match="it is 50000 x 50000 px, and PNG can only be decoded whole; convert it to a tiled"
    ):
        open_image(huge_png(tmp_path / "a.png", 50000, 50000))


def test_a_large_photo_opens_without_pillows_alarm(tmp_path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    with open_image(huge_png(tmp_path / "a.png", 20000, 20000)) as image:
        assert image.levels[0].size == Size(20000, 20000)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_photo_that_broke_off_is_an_image_error(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    path.write_bytes(path.read_bytes()[:-3000])
    image = open_image(path)
    with pytest.raises(ImageError, match=r"a\.png: cannot read rows 0\.\.60, columns 0\.\.50 of level 0: .*truncated"):
        image.read(ALL)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ImageError, match=r"a\.png: cannot be read: "):
        open_image(path)


def test_an_animation_shows_its_first_frame_and_says_so(tmp_path: Path) -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    with open_image(tmp_path / "a.webp") as image:
        assert image.warnings == ("a: has 2 frames: only the first is read",)
        assert np.array_equal(image.read(ALL), RGB)


def test_it_is_decoded_once_and_forgotten_when_closed(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    image = FlatSource(tmp_path / "a.png")
    assert image._decoded is None
    image.read(Box(0, 0, 1, 1))
    kept = image._decoded
    image.valid(Box(5, 5, 1, 1))
    assert image._decoded is kept is not None
    image.close()
    assert image._decoded is None


@pytest.mark.parametrize("clear", [None, 2, bytes([255, 255, 0, 255])])
def test_a_palette_gives_its_colours_and_what_is_clear_in_it_is_no_data(
    tmp_path: Path, clear: int | bytes | None
) -> None:
    values = RNG.integers(0, 4, (20, 30), dtype=np.uint8)
    image = Image.fromarray(values, "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 9, 8, 7, 1, 2, 3])
    image.save(tmp_path / "a.png", **({} if clear is None else {"transparency": clear}))
    colours = np.array([[255, 0, 0], [0, 255, 0], [9, 8, 7], [1, 2, 3]], np.uint8)
    with open_image(tmp_path / "a.png") as source:
        box = source.levels[0].size.box
        assert source.bands == ("red", "green", "blue")
        assert np.array_equal(source.read(box), colours[values])
        assert np.array_equal(source.valid(box), np.ones_like(values, bool) if clear is None else values != 2)
        assert any("palette colours" in warning for warning in source.warnings)
    with open_image(tmp_path / "a.png", indexed=True) as mask:
        assert mask.bands == ("band 1",)
        assert np.array_equal(mask.read(box)[..., 0], values)


@pytest.mark.parametrize("bits", [2, 4])
def test_class_values_in_few_bits_stay_as_they_are(tmp_path: Path, bits: int) -> None:
    values = np.arange(2**bits, dtype=np.uint8).repeat(3).reshape(1, -1)
    profile = {"driver": "PNG", "count": 1, "height": 1, "width": values.shape[1], "dtype": "uint8", "nbits": bits}
    with warnings.catch_warnings(action="ignore"), rasterio.open(tmp_path / "a.png", "w", **profile) as file:
        file.write(values, 1)
    assert (tmp_path / "a.png").read_bytes()[24] == bits
    with open_image(tmp_path / "a.png", indexed=True) as mask:
        assert np.array_equal(mask.read(mask.levels[0].size.box)[..., 0], values)
    with open_image(tmp_path / "a.png") as image:
        assert image.read(image.levels[0].size.box).max() == 255, "a picture is as bright as it is shown"
