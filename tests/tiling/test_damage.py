"""A tile that cannot be decoded is told with its place and is no data; the rest of the image is read."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
import zarr

from tiling import Box, ImageError, Spacing, View, open_image
from tiling.damage import Damage, DamageLog

PIXELS = np.random.default_rng(0).integers(1, 256, (256, 320, 3), dtype=np.uint8)
BROKEN = Box(64, 128, 64, 64)
WHOLE = Box(0, 0, 256, 320)


def spoil(path: Path, offset: int) -> None:
    """Overwrites the beginning of a compressed tile."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(50))


def make_tiff(folder: Path) -> Path:
    path = folder / "slide.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages.first.dataoffsets[1 * 5 + 2]
    spoil(path, offset)
    return path


def make_geotiff(folder: Path) -> Path:
    path = folder / "map.tif"
    profile = {"driver": "GTiff", "count": 3, "height": 256, "width": 320, "dtype": "uint8", "crs": "EPSG:32633"}
    place = rasterio.Affine(0.5, 0, 5e5, 0, -0.5, 5e6)
    blocks = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate", "interleave": "pixel"}
    with rasterio.open(path, "w", **profile, **blocks, transform=place) as dataset:
        dataset.write(PIXELS.transpose(2, 0, 1))
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages.first.dataoffsets[1 * 5 + 2]
    spoil(path, offset)
    return path


def make_zarr(folder: Path) -> Path:
    zarr.create_array(folder / "a.zarr", data=PIXELS, chunks=(64, 64, 3))
    (folder / "a.zarr/c/1/2/0").write_bytes(b"broken")
    return folder / "a.zarr"


MAKERS: list[Callable[[Path], Path]] = [make_tiff, make_geotiff, make_zarr]


@pytest.mark.parametrize("make", MAKERS)
def test_a_broken_tile_is_no_data_and_all_others_are_read(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    expected, valid = PIXELS.copy(), np.ones((256, 320), bool)
    expected[BROKEN.slices], valid[BROKEN.slices] = 0, False
    with open_image(make(tmp_path), strict=False) as image:
        for box in (WHOLE, Box(100, 150, 60, 90), Box(70, 130, 9, 9), WHOLE):
            assert np.array_equal(image.read(box), expected[box.slices])
            assert np.array_equal(image.valid(box), valid[box.slices])
        assert [(damage.level, damage.box) for damage in image.damage] == [(0, BROKEN)]
        told = [line for line in image.warnings if "cannot be decoded" in line]
        assert len(told) == 1
        assert told[0].startswith(f"{image.name}: rows 64..128, columns 128..192 of level 0 cannot be decoded")
        assert "\n" not in told[0]


@pytest.mark.parametrize("make", MAKERS)
def test_a_strict_image_refuses_what_touches_a_broken_tile(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with open_image(make(tmp_path)) as image:
        with pytest.raises(ImageError, match=r"cannot read rows 0\.\.256, columns 0\.\.320 of level 0"):
            image.read(WHOLE)
        assert np.array_equal(image.read(Box(128, 0, 64, 320)), PIXELS[128:192])


def test_a_window_over_a_broken_tile_is_filled_and_not_valid(tmp_path: Path) -> None:
    view = View.open(open_image(make_tiff(tmp_path), strict=False))
    pixels, valid = view.window(Box(60, 120, 80, 80), fill=(7.0, 8.0, 9.0))
    assert (pixels[~valid] == (7, 8, 9)).all()
    assert (~valid).sum() == BROKEN.pixels
    smaller = View.open(
        open_image(make_tiff(tmp_path), strict=False), Spacing.square(1, "um"), Spacing.square(0.5, "um")
    )
    valid = smaller.window(smaller.size.box)[1]
    assert np.array_equal(np.argwhere(~valid)[[0, -1]], [[32, 64], [63, 95]])


def test_a_real_corrupt_raster_loses_one_block_only(shared_data: Path) -> None:
    with open_image(shared_data / "odd/geo/corrupt.tif", strict=False) as image:
        box = image.levels[0].size.box
        pixels, valid = image.read(box), image.valid(box)
        assert [damage.box for damage in image.damage] == [Box(512, 512, 512, 512)]
        assert valid.sum() == 3 * 512 * 512
        with rasterio.open(image.path) as dataset:
            expected = dataset.read(window=((0, 512), (0, 1024))).transpose(1, 2, 0)
        assert np.array_equal(pixels[:512], expected)


def test_threads_find_the_same_damage(tmp_path: Path) -> None:
    image = open_image(make_tiff(tmp_path), strict=False)
    boxes = [Box(y, x, 64, 64) for y in range(0, 192, 16) for x in range(0, 256, 16)] * 2
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(image.read, boxes))
    assert [damage.box for damage in image.damage] == [BROKEN]


def test_a_copy_that_travelled_is_as_lenient_and_can_be_told_of_damage(tmp_path: Path) -> None:
    image = open_image(make_tiff(tmp_path), bands=("3", "1"), strict=False)
    copy: Any = pickle.loads(pickle.dumps(image))
    assert copy.bands == ("blue", "red")
    copy.read(WHOLE)
    assert image.damage == ()
    image.note_damage(copy.damage)
    assert image.damage == copy.damage
    assert not image.valid(BROKEN).any()


def test_a_file_that_is_gone_is_no_damaged_tile(tmp_path: Path, shared_data: Path) -> None:
    path = tmp_path / "map.tif"
    shutil.copy(shared_data / "odd/geo/RGB.byte.tif", path)
    image = open_image(path, strict=False)
    image.close()
    path.unlink()
    with pytest.raises(ImageError, match="the file is gone"):
        image.read(Box(0, 0, 9, 9))
    assert image.damage == ()


def test_many_damaged_places_are_counted_and_not_all_listed() -> None:
    log = DamageLog()
    log.add(Damage(i % 2, Box(i, 0, 1, 1), "bad") for i in range(30))
    log.add([Damage(0, Box(0, 0, 1, 1), "worse")])
    assert len(log.found) == 30
    assert log.found[0].reason == "bad"
    assert log.lines[0] == "rows 0..1, columns 0..1 of level 0 cannot be decoded, and is taken as no data (bad)"
    assert log.lines[-1] == "10 more places cannot be decoded"
    assert log.touching(1, Box(0, 0, 30, 1)) == [Box(i, 0, 1, 1) for i in range(1, 30, 2)]
