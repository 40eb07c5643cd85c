"""Arrays: NumPy in memory, Zarr 2 and 3 on disk, and OME-Zarr with its levels and micrometres."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from affine import Affine

from tiling import Box, Georef, ImageError, Size, open_image
from tiling.readers.array import ArraySource

with warnings.catch_warnings():
    # ome-zarr deprecates a class that its own signatures use.
    warnings.simplefilter("ignore", DeprecationWarning)
    from ome_zarr.io import parse_url
    from ome_zarr.writer import write_multiscale

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (60, 50, 3), dtype=np.uint8)
ALL = Box(0, 0, 60, 50)


def ome_zarr(path: Path, axes: list[dict[str, str]], pixels: Any, scale: list[float]) -> Path:
    """Two levels written by the reference implementation."""
    root = zarr.open_group(store=parse_url(path, mode="w").store, mode="w")
    half = pixels[..., ::2, ::2]
    doubled = [*scale[:-2], 2 * scale[-2], 2 * scale[-1]]
    transforms = [[{"type": "scale", "scale": s}] for s in (scale, doubled)]
    with warnings.catch_warnings():
        # Newer versions name this argument otherwise, older ones know no other.
        warnings.simplefilter("ignore", DeprecationWarning)
        write_multiscale([pixels, half], root, axes=axes, coordinate_transformations=transforms)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64, ">u2"])
@pytest.mark.parametrize("shape", [(60, 50), (60, 50, 1), (60, 50, 3), (60, 50, 7)])
def test_an_array_in_memory_is_an_image(dtype: Any, shape: tuple[int, ...]) -> None:
    pixels = RNG.integers(0, 200, shape).astype(dtype)
    image = open_image(pixels)
    assert (image.path, image.name, image.kind, image.georef.unit) == ("<array>", "array", "array", None)
    assert image.dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(image.read(ALL), pixels.reshape(60, 50, -1))
    assert image.valid(ALL).all()


def test_three_bytes_are_red_green_and_blue_and_other_bands_are_numbered() -> None:
    assert open_image(RGB).bands == ("red", "green", "blue")
    assert open_image(RGB.astype(np.uint16)).bands == ("band 1", "band 2", "band 3")
    assert open_image(RGB[..., 0]).bands == ("band 1",)


def test_a_place_and_a_mask_can_be_given() -> None:
    place = Georef(Affine(2, 0, 5e5, 0, -2, 5e6), "crs", "EPSG:32633")
    mask = RNG.random((60, 50)) > 0.5
    floats = RGB.astype(np.float32)
    floats[7, 8, 1] = np.nan
    image = ArraySource(floats, georef=place, valid=mask)
    expected = mask.copy()
    expected[7, 8] = False
    for copy in (image, pickle.loads(pickle.dumps(image))):
        assert copy.georef == place
        assert np.array_equal(copy.valid(Box(5, 5, 20, 20)), expected[5:25, 5:25])
    with pytest.raises(ImageError, match=r"its valid mask is \(5, 5\); expected that of the image, 60 x 50 px"):
        ArraySource(RGB, valid=np.ones((5, 5), bool))


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.zeros(5), r"its shape is \(5,\); expected \(height, width\)"),
        (np.zeros((2, 3, 4, 5)), r"its shape is \(2, 3, 4, 5\)"),
        (np.zeros((0, 5)), r"its shape is \(0, 5\)"),
        (np.zeros((5, 5), np.complex64), "its values are complex64"),
        (np.zeros((5, 5), bool), "its values are bool"),
        (np.zeros((5, 5), "U3"), "its values are <U3"),
    ],
)
def test_an_array_that_is_no_image_is_refused(pixels: Any, reason: str) -> None:
    with pytest.raises(ImageError, match=f"<array>: cannot be read: {reason}"):
        open_image(pixels)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ("", (60, 50)),
        ("", (60, 50, 3)),
        ("", (3, 60, 50)),
        ("", (1, 3, 1, 60, 50)),
        ("xyc", (50, 60, 3)),
        ("cyx", (70, 60, 50)),
    ],
)
def test_a_zarr_array_on_disk_has_bands_last(
    tmp_path: Path, zarr_format: Any, axes: str, shape: tuple[int, ...]
) -> None:
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    named = {"dimension_names": list(axes)} if axes and zarr_format == 3 else {}
    array = zarr.create_array(
        tmp_path / "a.zarr", data=pixels, chunks=tuple(min(n, 16) for n in shape), zarr_format=zarr_format, **named
    )
    if axes and zarr_format == 2:
        array.attrs["_ARRAY_DIMENSIONS"] = list(axes)
    order = axes or {2: "yx", 5: "tczyx"}.get(len(shape)) or ("yxc" if shape[-1] == 3 else "cyx")
    expected = np.einsum(f"{order}->yxc" if "c" in order else f"{order}->yx", pixels)
    for image in (open_image(tmp_path / "a.zarr"), open_image(zarr.open_array(tmp_path / "a.zarr", mode="r"))):
        assert image.levels[0].size == Size(60, 50)
        assert np.array_equal(image.read(Box(13, 7, 40, 30)), expected.reshape(60, 50, -1)[13:53, 7:37])
        assert image.levels[0].chunk == Size(16, 16)
        copy = pickle.loads(pickle.dumps(image))
        assert np.array_equal(copy.read(ALL), expected.reshape(60, 50, -1))


@pytest.mark.parametrize("axes", ["yx", "cyx", "tczyx"])
def test_an_ome_zarr_has_levels_and_micrometres(tmp_path: Path, axes: str) -> None:
    kinds = {"t": ("time", "second"), "c": ("channel", ""), "z": ("space", "micrometer")}
    described = []
    for axis in axes:
        kind, unit = kinds.get(axis, ("space", "nanometer"))
        described.append({"name": axis, "type": kind} | ({"unit": unit} if unit else {}))
    shape = tuple({"y": 60, "x": 50, "c": 2}.get(axis, 1) for axis in axes)
    pixels = RNG.integers(0, 60000, shape, dtype=np.uint16)
    path = ome_zarr(tmp_path / "a.ome.zarr", described, pixels, [1.0] * (len(axes) - 2) + [500.0, 250.0])
    image = open_image(path)
    assert image.name == "a"
    assert image.georef.unit == "um"
    assert image.georef.world(1, 1) == pytest.approx((0.25, 0.5))
    assert [level.scale for level in image.levels] == [(1, 1), (2, 2)]
    flat = pixels.reshape(-1, 60, 50).transpose(1, 2, 0)
    assert np.array_equal(image.read(ALL), flat)
    assert np.array_equal(image.read(Box(3, 4, 20, 20), 1), flat[::2, ::2][3:23, 4:24])


def test_channel_labels_of_an_ome_zarr_name_the_bands(tmp_path: Path) -> None:
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    path = ome_zarr(tmp_path / "a.zarr", axes, RGB.transpose(2, 0, 1)[:2], [1.0, 1.0, 1.0])
    group = zarr.open_group(path, mode="r+")
    labels = {"channels": [{"label": "DAPI"}, {"label": "CD3"}]}
    group.attrs.update({"ome": {**group.attrs.asdict()["ome"], "omero": labels}})
    image = open_image(path)
    assert image.bands == ("DAPI", "CD3")
    assert image.georef.unit is None


def test_what_is_left_of_time_and_depth_is_told(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (2, 3, 4, 60, 50), dtype=np.uint8)
    zarr.create_array(tmp_path / "a.zarr", data=pixels)
    image = open_image(tmp_path / "a.zarr")
    assert np.array_equal(image.read(ALL), pixels[0, :, 0].transpose(1, 2, 0))
    assert [w.split(": ", 1)[1] for w in image.warnings] == [
        "has 2 positions on axis T: only the first is read",
        "has 4 positions on axis Z: only the first is read",
    ]


def test_a_group_that_is_no_image_says_what_is_inside(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("image", data=RGB)
    with pytest.raises(
        ImageError, match=r"is a Zarr group without 'multiscales', holding image; name the image inside it"
    ):
        open_image(tmp_path / "a.zarr")
    assert open_image(tmp_path / "a.zarr/image").levels[0].size == Size(60, 50)


def test_axes_that_cannot_be_an_image_are_refused(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=RGB, dimension_names=["time", "x", "z"])
    with pytest.raises(ImageError, match="its axes are time, x, z; expected y and x"):
        open_image(tmp_path / "a.zarr")
    zarr.create_array(tmp_path / "b.zarr", data=np.zeros((2, 2, 2, 2)))
    with pytest.raises(ImageError, match="its axes have no names"):
        open_image(tmp_path / "b.zarr")
    zarr.create_array(tmp_path / "c.zarr", shape=(0, 5), dtype="uint8")
    with pytest.raises(ImageError, match="it holds no pixel"):
        open_image(tmp_path / "c.zarr")


def test_a_damaged_chunk_is_an_image_error_and_a_damaged_header_too(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=RGB, chunks=(30, 50, 3))
    image = open_image(tmp_path / "a.zarr")
    (tmp_path / "a.zarr/c/0/0/0").write_bytes(b"broken")
    with pytest.raises(ImageError, match=r"a\.zarr: cannot read rows 0\.\.60, columns 0\.\.50 of level 0: "):
        image.read(ALL)
    assert np.array_equal(image.read(Box(30, 0, 30, 50)), RGB[30:])
    (tmp_path / "a.zarr/zarr.json").write_text("{")
    with pytest.raises(ImageError, match=r"a\.zarr: cannot be read: "):
        open_image(tmp_path / "a.zarr")


def test_the_mask_of_level_0_serves_the_coarser_levels(tmp_path: Path) -> None:
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    path = ome_zarr(tmp_path / "a.zarr", axes, RGB[..., 0], [1.0, 1.0])
    mask = np.zeros((60, 50), bool)
    mask[:, 20:] = True
    image = ArraySource(path, valid=mask)
    assert np.array_equal(image.valid(Box(0, 0, 30, 25), 1), mask[1::2, 1::2])
