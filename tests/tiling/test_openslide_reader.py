"""MIRAX slides, whole and scanned in part, against OpenSlide; and where their pixels lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mirax import write_mirax
from numpy.typing import NDArray

from tiling import Box, ImageError, Size, Spacing, View, open_image
from tiling.readers.openslide import declared_bounds, on_borders, stated_spacing


def scanned(height: int, width: int, part: Box | None = None) -> NDArray[np.uint8]:
    """Noise where the slide was scanned, black elsewhere."""
    pixels = np.zeros((height, width, 3), np.uint8)
    part = part or Box(0, 0, height, width)
    pixels[part.slices] = np.random.default_rng(0).integers(1, 256, (part.height, part.width, 3))
    return pixels


PART = Box(192, 128, 320, 384)


@pytest.fixture
def bounded(tmp_path: Path) -> Path:
    """768 x 640 px, of which only PART was scanned."""
    return write_mirax(tmp_path / "bounded.mrxs", scanned(768, 640, PART), tile=64, levels=3)


def test_a_whole_slide_reads_as_openslide_reads_it(tmp_path: Path) -> None:
    pixels = scanned(256, 384)
    path = write_mirax(tmp_path / "whole.mrxs", pixels, tile=64, levels=3)
    with open_image(path) as image, openslide.OpenSlide(path) as slide:
        assert (image.kind, image.bands, image.warnings) == ("slide", ("red", "green", "blue"), ())
        assert image.georef.world(1, 1) == (0.25, 0.25)
        assert np.array_equal(image.read(image.levels[0].size.box), pixels)
        for i, level in enumerate(image.levels):
            expected = np.asarray(slide.read_region((0, 0), i, slide.level_dimensions[i]))
            assert np.array_equal(image.read(level.size.box, i), expected[..., :3])
            assert image.valid(level.size.box, i).all()


def test_a_bounded_slide_is_its_bounds_and_keeps_their_offset(bounded: Path) -> None:
    with open_image(bounded) as image, openslide.OpenSlide(bounded) as slide:
        assert image.levels[0].size == PART.size
        assert any("places count from the slide's origin, 192 px above and 128 px left" in w for w in image.warnings)
        for i, level in enumerate(image.levels):
            step = 2**i
            assert level.size == Size(PART.height // step, PART.width // step)
            for box in (level.size.box, Box(3, 5, 40, 30)):
                at = PART.x + box.x * step, PART.y + box.y * step
                expected = np.asarray(slide.read_region(at, i, (box.width, box.height)))
                assert np.array_equal(image.read(box, i), expected[..., :3])
                assert np.array_equal(image.valid(box, i), expected[..., 3] > 0)


@pytest.mark.parametrize("spacing", [None, 0.25, 0.5, 0.7, 1.0])
def test_every_view_of_a_bounded_slide_has_its_corners_in_the_slides_own_micrometres(
    bounded: Path, spacing: float | None
) -> None:
    view = View.open(open_image(bounded), None if spacing is None else Spacing.square(spacing, "um"))
    with openslide.OpenSlide(bounded) as slide:
        um = float(slide.properties["openslide.mpp-x"])
        x, y, width, height = (float(slide.properties[f"openslide.bounds-{n}"]) for n in ("x", "y", "width", "height"))
    assert view.georef.world(0, 0) == pytest.approx((x * um, y * um), abs=0.01 * um)
    corner = view.georef.world(view.size.height, view.size.width)
    assert corner == pytest.approx(((x + width) * um, (y + height) * um), abs=0.01 * um)


def test_a_spacing_that_a_user_states_keeps_the_offset_in_pixels(tmp_path: Path) -> None:
    path = write_mirax(tmp_path / "a.mrxs", scanned(768, 640, PART), tile=64, levels=3, um=None)
    image = open_image(path)
    assert image.georef.unit is None
    assert image.georef.world(0, 0) == (128, 192)
    assert any("which no slide is: taken as unknown" in warning for warning in image.warnings)
    view = View.open(image, stated=Spacing.square(0.5, "um"))
    assert view.georef.world(0, 0) == (64, 96)
    assert view.georef.world(2, 2) == (65, 97)


def test_a_missing_companion_folder_is_said_in_one_line(tmp_path: Path) -> None:
    path = write_mirax(tmp_path / "a.mrxs", scanned(64, 64), tile=64, levels=1)
    (tmp_path / "a" / "Slidedat.ini").unlink()
    with pytest.raises(ImageError, match=r"a\.mrxs: cannot be read: ") as refused:
        open_image(path)
    assert "\n" not in str(refused.value)


def test_a_slide_that_failed_is_opened_anew(bounded: Path) -> None:
    data = bounded.with_suffix("") / "Data0000.dat"
    whole = data.read_bytes()
    image = open_image(bounded)
    data.write_bytes(bytes(len(whole)))
    with pytest.raises(ImageError, match=r"bounded\.mrxs: cannot read rows 0\.\.64, columns 0\.\.64 of level 0: "):
        image.read(Box(0, 0, 64, 64))
    data.write_bytes(whole)
    assert image.read(Box(0, 0, 64, 64)).any()


FULL = Size(1000, 1600)


def bounds(y: str, x: str, height: str, width: str) -> dict[str, str]:
    values = {"y": y, "x": x, "height": height, "width": width}
    return {f"openslide.bounds-{name}": value for name, value in values.items()}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, None),
        (bounds("0", "0", "1000", "1600"), None),
        (bounds("10", "20", "300", "400"), Box(10, 20, 300, 400)),
        (bounds("900", "20", "300", "400"), Box(900, 20, 100, 400)),
        (bounds("2000", "20", "300", "400"), None),
        (bounds("a", "20", "300", "400"), None),
        (bounds("10", "20", "0", "400"), None),
    ],
)
def test_bounds_are_those_that_can_be(facts: dict[str, str], expected: Box | None) -> None:
    assert declared_bounds(facts, FULL) == expected


@given(st.integers(0, 900), st.integers(0, 1500), st.integers(1, 100), st.integers(1, 100), st.integers(0, 6))
def test_bounds_grow_to_the_borders_of_every_level_and_no_further(
    y: int, x: int, height: int, width: int, levels: int
) -> None:
    box = Box(y, x, height, width)
    grown = on_borders(box, [2.0**i for i in range(levels + 1)], FULL)
    step = 2**levels
    assert grown.contains(box)
    assert FULL.box.contains(grown)
    assert grown.y % step == 0
    assert grown.x % step == 0
    assert box.y - grown.y < step
    assert grown.bottom % step == 0 or grown.bottom == FULL.height
    assert grown.right % step == 0 or grown.right == FULL.width


def test_levels_without_common_borders_leave_bounds_as_they_are() -> None:
    assert on_borders(Box(11, 13, 100, 100), [1.0, 2.37], FULL) == Box(11, 13, 100, 100)


def test_a_spacing_is_taken_only_where_it_can_be_measured() -> None:
    assert stated_spacing({}) == (None, None)
    found, doubt = stated_spacing({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.5"})
    assert (found, doubt) == (Spacing(0.5, 0.25, "um"), None)
    found, doubt = stated_spacing({"openslide.mpp-x": "352.7", "openslide.mpp-y": "352.7"})
    assert found is None
    assert doubt == "says that a pixel is 352.7 x 352.7 um, which no slide is: taken as unknown"
