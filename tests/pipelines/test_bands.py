"""Bands are found by their names, in whatever order and case an image has them; what cannot be matched is said."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from places import expected, model, rgb

from pipelines import Options, segment
from pipelines.bands import match_bands, misplaced, other_order
from pipelines.errors import RequestError
from tiling import open_image
from tiling.source import Source

RGB = ("red", "green", "blue")
PLAIN = Options(device="cpu", tissue=False, exports=())


def write(path: Path, pixels: NDArray[np.uint8], names: tuple[str, ...]) -> Path:
    """A GeoTIFF of (H, W, bands) with described bands."""
    height, width, count = pixels.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": pixels.dtype}
    with rasterio.open(path, "w", transform=rasterio.Affine.scale(2, -2), **profile) as file:
        file.write(pixels.transpose(2, 0, 1))
        file.descriptions = names
    return path


@pytest.mark.parametrize(
    ("here", "order"),
    [
        (("Blue", "Green", "Red"), (2, 1, 0)),
        (("RED", "green", "blue"), None),
        (("nir", "Red", "Green", "Blue"), (1, 2, 3)),
        (("B4", "B3", "B2"), None),
        (("red", "green"), None),
        (("red", "red", "blue"), None),
    ],
)
def test_names_tell_the_order_whatever_their_case(here: tuple[str, ...], order: tuple[int, ...] | None) -> None:
    assert other_order(here, RGB) == order


def images(folder: Path) -> list[Source]:
    pixels = rgb(60, 90)
    straight = open_image(write(folder / "straight.tif", pixels, RGB))
    turned = open_image(write(folder / "turned.tif", pixels[..., [2, 0, 1]], ("Blue", "Red", "Green")))
    return [straight, turned]


def test_images_give_their_bands_in_the_models_order_and_so_do_their_copies(tmp_path: Path) -> None:
    opened = images(tmp_path)
    match_bands(opened, RGB, "uint8")
    more = np.dstack([rgb(60, 90)[..., [2]], rgb(60, 90)])
    opened.append(open_image(write(tmp_path / "more.tif", more, ("nir", "Red", "Green", "Blue"))))
    match_bands(opened, RGB, "uint8")  # scenes of one image come with it more than once
    for image in (*opened, *pickle.loads(pickle.dumps(opened))):
        assert np.array_equal(image.read(image.levels[0].size.box), rgb(60, 90))


def test_an_image_is_segmented_alike_whatever_the_order_of_its_bands(tmp_path: Path) -> None:
    for image in images(tmp_path):
        found = segment(image.path, model(), tmp_path / "out", PLAIN).labels()
        assert np.array_equal(found.read(found.size.box), expected(60, 90))


@pytest.mark.parametrize("names", [("nir", "red", "green"), ("Red", "Green", "NIR"), ("nir", "B3", "B2")])
def test_a_band_is_not_taken_for_another_part_of_the_spectrum(tmp_path: Path, names: tuple[str, ...]) -> None:
    image = write(tmp_path / "infrared.tif", rgb(60, 90), names)
    with pytest.raises(RequestError, match="would be read as another; choose with --bands"):
        segment(image, model(), tmp_path / "out", PLAIN)
    with pytest.raises(RequestError, match="name them alike"):
        match_bands([open_image(image)], RGB, "uint8")
    found = segment(image, model(), tmp_path / "out", replace(PLAIN, bands=("1", "2", "3"))).labels()
    assert np.array_equal(found.read(found.size.box), expected(60, 90))


def test_names_that_say_nothing_of_the_spectrum_are_taken_in_their_order() -> None:
    assert misplaced(RGB, ("nir", "red", "green")) is None
    assert misplaced(("B4", "B3", "B2"), RGB) is None
    assert misplaced(("red", "green", "band 3"), RGB) is None
    assert misplaced(("nir", "red", "green"), ("a", "b", "c")) is None


def test_what_does_not_match_is_said(tmp_path: Path) -> None:
    opened = images(tmp_path)
    with pytest.raises(RequestError, match=r"straight\.tif has 3 bands; nuclei reads 4"):
        match_bands(opened, (*RGB, "nir"), "uint8", "nuclei")
    with pytest.raises(RequestError, match=r"straight\.tif holds uint8 values; the model reads uint16"):
        match_bands(opened, RGB, "uint16")


def test_a_band_that_may_be_hidden_as_alpha_is_pointed_at(tmp_path: Path) -> None:
    four = np.dstack([rgb(60, 90), rgb(60, 90)[..., :1]])
    image = write(tmp_path / "four.tif", four, ("", "", "", ""))
    with pytest.raises(RequestError, match=r"has 3 bands .* reads 4 bands .*; band 4 is marked as alpha: if it is a"):
        segment(image, model(4), tmp_path / "out", PLAIN)
