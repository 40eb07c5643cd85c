"""A slide of 40,000 x 40,000 pixels: every zoom is there at once, in its place, in little memory."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import psutil
import tifffile
from bundles import write_bundle_from
from PIL import Image
from servers import serving

from pipelines.display.catalog import Catalog, read_key
from pipelines.display.levels import zoom_levels
from tiling import open_image

SIDE, TILE = 40_000, 512
COLOURS = np.random.default_rng(0).integers(30, 226, (97, 3), np.uint8)


def write_slide(path: Path) -> None:
    """A pyramid of JPEG tiles of one colour each; levels of a quarter each show the colour of their own tile."""
    flat = [np.broadcast_to(colour, (TILE, TILE, 3)).copy() for colour in COLOURS]
    packed = [bytes(imagecodecs.jpeg8_encode(tile, level=90, subsampling="444")) for tile in flat]

    def tiles(length: int) -> Iterator[bytes]:
        across = -(-length // TILE)
        return (packed[(across * row + column) % len(packed)] for row in range(across) for column in range(across))

    lengths = [SIDE, SIDE // 4, SIDE // 16, SIDE // 64]
    with tifffile.TiffWriter(path, bigtiff=True) as out:
        for level, length in enumerate(lengths):
            more = {"subifds": len(lengths) - 1} if level == 0 else {"subfiletype": 1}
            out.write(
                tiles(length), shape=(length, length, 3), dtype=np.uint8, photometric="ycbcr", compression="jpeg",
                tile=(TILE, TILE), subsampling=(1, 1), metadata=None,
                resolution=(20000 / 4**level, 20000 / 4**level), resolutionunit="CENTIMETER", **more,
            )  # fmt: skip


def test_a_slide_of_sixteen_hundred_megapixels_is_shown_at_every_zoom(tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    path = folder / "large.tif"
    write_slide(path)
    square = np.zeros((2048, 2048), np.uint8)
    square[500:600, 700:900] = 1
    write_bundle_from(folder / "results" / "large", path, {(16, 9): square})
    levels = zoom_levels(open_image(path))
    with serving([folder], tmp_path) as server:
        contents = Catalog([folder], read_key(tmp_path / "cache" / "veca" / "viewer.key")).look()
        (image,), (mask,) = contents.images, contents.layers
        across = -(-SIDE // TILE)
        for row, column in ((0, 0), (60, 31), (77, 77)):
            status, body = server.ask(f"/veca/image/{image}/0/{row}/{column}")
            shown = np.asarray(Image.open(io.BytesIO(body))).astype(int)
            assert status == 200
            assert np.abs(shown[5, 5] - COLOURS[(across * row + column) % len(COLOURS)]).max() < 5
        for level, zoom in enumerate(levels):
            status, _ = server.ask(f"/veca/image/{image}/{level}/{zoom.tiles[0] - 1}/{zoom.tiles[1] - 1}")
            assert status == 200
        assert max(levels[-1].size.height, levels[-1].size.width) <= 256
        top, left = 16 * 2048 + 500, 9 * 2048 + 700
        tile = server.ask(f"/veca/mask/{mask}/0/{top // 512}/{left // 512}", Accept_Encoding="gzip")[1]
        values = np.frombuffer(gzip.decompress(tile), np.uint8).reshape(512, 512)
        assert values[top % 512, left % 512] == 1
        assert values[top % 512 - 1, left % 512] != 1
        assert psutil.Process(server.process.pid).memory_info().rss < 400e6
