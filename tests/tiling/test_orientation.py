"""Orientation tags: every one of the eight, whole and in parts, against Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tiling import Box, Size, open_image
from tiling.readers.orientation import Orientation

STORED = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


def turned_by_pillow(path: Path, value: int) -> np.ndarray:
    """What Pillow's exif_transpose makes of the stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = value
    Image.fromarray(STORED).save(path, exif=exif)
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image))


@pytest.mark.parametrize("value", range(1, 9))
def test_a_turned_tiff_is_read_upright(tmp_path: Path, value: int) -> None:
    expected = turned_by_pillow(tmp_path / "a.png", value)
    path = tmp_path / "a.tif"
    options = {"extratags": [(274, 3, 1, value, True)]} if value > 1 else {}
    with tifffile.TiffWriter(path) as writer:
        for step in (1, 2):
            part = STORED[::step, ::step]
            more = {"subfiletype": 1} if step == 2 else {"resolution": (40000, 20000), "resolutionunit": "CENTIMETER"}
            writer.write(part, photometric="rgb", tile=(16, 32), compression="zlib", metadata=None, **options, **more)
    with open_image(path) as image:
        size = Size(*expected.shape[:2])
        assert image.levels[0].size == size
        assert np.array_equal(image.read(size.box), expected)
        for box in (Box(0, 0, 3, 5), Box(20, 11, 15, 20), Box(size.height - 2, size.width - 3, 2, 3)):
            assert np.array_equal(image.read(box), expected[box.slices])
        spacing = image.georef.spacing(size)
        assert spacing is not None
        assert (spacing.x, spacing.y) == pytest.approx((0.25, 0.5) if value < 5 else (0.5, 0.25))
        assert any("it is read upright" in warning for warning in image.warnings) == (value > 1)


@pytest.mark.parametrize("value", range(1, 9))
def test_a_turned_picture_is_read_upright(tmp_path: Path, value: int) -> None:
    expected = turned_by_pillow(tmp_path / "a.png", value)
    with open_image(tmp_path / "a.png") as image:
        assert np.array_equal(image.read(image.levels[0].size.box), expected)


@given(st.integers(1, 8), st.data())
def test_a_part_of_the_upright_image_is_the_turned_part_of_the_stored_one(value: int, data: st.DataObject) -> None:
    turn = Orientation(value)
    stored = Size(*STORED.shape[:2])
    whole = turn.upright(STORED)
    assert turn.size(stored) == Size(*whole.shape[:2])
    y, x = data.draw(st.integers(0, whole.shape[0] - 1)), data.draw(st.integers(0, whole.shape[1] - 1))
    height, width = data.draw(st.integers(1, whole.shape[0] - y)), data.draw(st.integers(1, whole.shape[1] - x))
    box = Box(y, x, height, width)
    assert np.array_equal(turn.upright(STORED[turn.stored(box, stored).slices]), whole[box.slices])


def test_an_orientation_that_is_none_counts_as_upright() -> None:
    assert [Orientation.of_tag(value).value for value in (0, 9, "6", None, 6)] == [1, 1, 1, 1, 6]
    with pytest.raises(ValueError, match="an orientation is 1 to 8, got 9"):
        Orientation(9)
