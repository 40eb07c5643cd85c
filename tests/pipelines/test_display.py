"""Images as tiles: every pixel once, in its place and colour, at every zoom."""

from __future__ import annotations

import io
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine
from drawn_slides import SECRET, tissue, write_svs
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipelines.bundle import image_fingerprint
from pipelines.display.jpeg import NotJpegError, standalone
from pipelines.display.levels import zoom_levels
from pipelines.display.look import Channel, Look
from pipelines.display.making import make_room
from pipelines.display.overview import DiskOverview, build, write
from pipelines.display.reduce import halve
from pipelines.display.tiles import PAPER, ImageTiles, open_tiles
from pipelines.errors import RequestError
from tiling import Size, open_image
from tiling.readers.array import ArraySource


def picture(data: bytes) -> NDArray[np.uint8]:
    """What a browser shows of a JPEG."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def mosaic(tiles: ImageTiles, level: int) -> NDArray[np.uint8]:
    """All tiles of a level laid beside each other, as they go to a browser."""
    zoom = tiles.levels[level]
    out = np.zeros((zoom.size.height, zoom.size.width, 3), np.uint8)
    for row in range(zoom.tiles[0]):
        for column in range(zoom.tiles[1]):
            out[zoom.box(row, column).slices] = picture(tiles.tile(level, row, column).data)
    return out


@given(height=st.integers(1, 9000), width=st.integers(1, 9000))
@settings(max_examples=60, deadline=None)
def test_each_level_covers_the_image_and_the_last_one_is_small(height: int, width: int) -> None:
    source = ArraySource(np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (height, width, 3)))
    levels = zoom_levels(source)
    assert max(levels[-1].size.height, levels[-1].size.width) <= 256
    for level in levels:
        down, across = level.tiles
        last = level.box(down - 1, across - 1)
        assert (last.bottom, last.right) == (level.size.height, level.size.width)
        below = level.below(level.size.box, Size(height, width))
        assert (below.height, below.width) == (height, width)
        with pytest.raises(IndexError):
            level.box(down, 0)
        with pytest.raises(IndexError):
            level.box(0, -1)


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
def test_jpeg_tiles_are_handed_on_undecoded_and_in_the_right_colours(tmp_path: Path, photometric: str) -> None:
    pixels = tissue(700, 500)
    path = write_svs(tmp_path / "slide.svs", pixels, photometric)
    tiles = open_tiles(path, tmp_path / "cache")
    with tifffile.TiffFile(path) as tif:
        page = tif.series[0].levels[0].keyframe
        stored = page.parent.filehandle.read_array("u1", page.databytecounts[0], offset=page.dataoffsets[0]).tobytes()
        decoded = tif.series[0].levels[0].asarray()
    given_out = tiles.tile(0, 0, 0).data
    scan = stored[stored.rindex(b"\xff\xda") :]
    assert given_out.endswith(scan)
    difference = np.abs(picture(given_out).astype(int) - decoded[:240, :240].astype(int))
    assert difference.max() <= 3
    tiles.close()


def test_every_level_of_a_slide_shows_what_its_reader_reads(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "slide.svs", tissue(1500, 1100))
    tiles = open_tiles(path, tmp_path / "cache")
    sizes = [(z.size.height, z.size.width) for z in tiles.levels]
    assert sizes == [(1500, 1100), (750, 550), (375, 275), (188, 138)]
    assert [z.native for z in tiles.levels] == [True, False, True, False]
    source = open_image(path)
    full = source.read(source.levels[0].size.box)
    for level, zoom in enumerate(tiles.levels):
        step = round(zoom.step[0])
        wanted, _ = halve(full, np.ones(full.shape[:2], bool), step) if step > 1 else (full, None)
        shown = mosaic(tiles, level).astype(int)
        # Its own quarter level takes every fourth pixel, so there it may differ more than by what JPEG loses.
        assert np.abs(shown - wanted).mean() < (1.5 if zoom.source == 0 else 4)
    tiles.close()


def test_label_and_macro_are_in_no_tile(tmp_path: Path) -> None:
    tiles = open_tiles(write_svs(tmp_path / "slide.svs", tissue(700, 500)), tmp_path / "cache")
    shown = [mosaic(tiles, level) for level in range(len(tiles.levels))] + [picture(tiles.thumbnail(128).data)]
    for pixels in shown:
        assert not (np.abs(pixels.astype(int) - SECRET).max(axis=2) < 60).any()
    tiles.close()


def test_a_tile_that_is_no_jpeg_is_told() -> None:
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"no picture at all"):
        with pytest.raises(NotJpegError):
            standalone(data, None, None)


def test_a_raster_shows_its_nodata_as_paper_and_a_mean_does_not_bleed(tmp_path: Path) -> None:
    path = tmp_path / "scene.tif"
    pixels = np.full((3, 700, 900), 40, np.uint8)
    pixels[:, :, 450:] = 0
    profile = {"driver": "GTiff", "height": 700, "width": 900, "count": 3, "dtype": "uint8", "nodata": 0}
    with rasterio.open(path, "w", crs="EPSG:32617", transform=Affine(1, 0, 4e5, 0, -1, 4e6), **profile) as out:
        out.write(pixels)
    tiles = open_tiles(path, tmp_path / "cache")
    for level in range(len(tiles.levels)):
        shown = mosaic(tiles, level)
        middle = shown.shape[1] // 2
        assert np.abs(shown[:, : middle - 8].astype(int) - 40).max() <= 4
        assert np.abs(shown[:, middle + 8 :].astype(int) - PAPER).max() <= 4
    tiles.close()


def test_sixteen_bit_bands_are_stretched_and_can_be_looked_at_one_by_one(tmp_path: Path) -> None:
    ramp = np.linspace(1000, 9000, 600, dtype=np.uint16)
    pixels = np.stack([np.tile(ramp, (400, 1)), np.full((400, 600), 500, np.uint16)])
    path = tmp_path / "cells.ome.tif"
    tifffile.imwrite(path, pixels, photometric="minisblack", metadata={"axes": "CYX", "Channel": {"Name": ["a", "b"]}})
    tiles = open_tiles(path, tmp_path / "cache")
    first = tiles.look.channels[0]
    assert 900 < first.low < 1300
    assert 8700 < first.high < 9100
    red = Look((Channel(0, (255, 0, 0), 1000, 9000),))
    shown = picture(tiles.tile(0, 0, 0, red).data).astype(int)
    wanted = (ramp[: shown.shape[1]].astype(float) - 1000) / 8000 * 255
    assert np.abs(shown[50, :, 0] - wanted).max() < 6
    assert shown[..., 1:].max() < 8
    assert Look.parse(str(red), 2) == red
    tiles.close()


@pytest.mark.parametrize(
    "text", ["", "0", "2:ff0000:0:1", "0:ff000g:0:1", "0:ff0000:a:1", "0:ff0000:1..2:3", "0:ff0000:0"]
)
def test_a_look_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        Look.parse(text, 2)


@given(height=st.integers(1, 40), width=st.integers(1, 40), factor=st.sampled_from([2, 4]), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_coarser_pixel_is_the_mean_of_what_is_valid(height: int, width: int, factor: int, data: Any) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    pixels = rng.integers(0, 256, (height, width, 2), np.uint8)
    valid = rng.random((height, width)) < data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    coarse, known = halve(pixels, valid, factor)
    for y in range(coarse.shape[0]):
        for x in range(coarse.shape[1]):
            cell = np.s_[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
            assert known[y, x] == valid[cell].any()
            if known[y, x]:
                mean = pixels[cell][valid[cell]].astype(float).mean(axis=0)
                assert np.abs(coarse[y, x] - mean).max() <= 0.5


def test_the_overview_on_disk_holds_what_the_one_in_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.display.overview.STRIPE", 200 * 1200)  # several stripes
    path = tmp_path / "flat.png"
    Image.fromarray(tissue(1100, 1200)).save(path)
    source = open_image(path)
    levels = zoom_levels(source)
    write(str(path), tmp_path / "cache" / sha256(image_fingerprint(str(path)).encode()).hexdigest()[:32])
    stored = DiskOverview(source, tmp_path / "cache")
    assert stored.progress == 1
    for index, box, pixels, valid in build(source, levels):
        found, known = stored.read(index, box)
        assert np.array_equal(found, pixels)
        assert np.array_equal(known, valid)


def test_a_full_cache_drops_what_was_looked_at_longest_ago(tmp_path: Path) -> None:
    import os

    for age, name in enumerate(["new", "old", "oldest"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_bytes(b"x" * 1000)
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    make_room(tmp_path, 1500, keep=tmp_path / "now")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new"]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3000), (257, 2)])
def test_odd_images_have_tiles(tmp_path: Path, height: int, width: int) -> None:
    path = tmp_path / "odd.png"
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path)
    tiles = open_tiles(path, tmp_path / "cache")
    for level in range(len(tiles.levels)):
        assert np.abs(mosaic(tiles, level).astype(int) - 90).max() <= 3
    assert max(picture(tiles.thumbnail(64).data).shape) <= 64 + 64
    tiles.close()
