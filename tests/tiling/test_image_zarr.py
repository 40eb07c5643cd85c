"""image.zarr is an OME-Zarr image that its own library reads and validates, with the labels that it carries."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from label_images import CLASSES, publish, random_labels
from ome_zarr_models.v05 import Image, ImageLabel, Labels

from tiling import Georef, ImageError, Spacing, View, open_image
from tiling.exports import EXPORTS
from tiling.exports.image_zarr import mean2

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

VALUES = random_labels(901, 1203, smooth=31)


def write(folder: Path, pixels: Any, **options: Any) -> Path:
    """The export of a slide of 0.5 um/px, beside labels of it."""
    image = folder / "a.tif"
    resolution = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER", "metadata": None}
    tifffile.imwrite(image, pixels, tile=(256, 256), **resolution, **options)
    labels = publish(folder, VALUES, georef=Georef.micrometres(Spacing.square(0.5, "um")))
    (path,) = EXPORTS["image"](labels, folder, View.open(open_image(image)), {})
    return path


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_image_and_its_labels_are_read_by_ome_zarr(tmp_path: Path, dtype: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (901, 1203, 3)).astype(dtype)
    path = write(tmp_path, pixels, photometric="rgb")
    image = Image.from_zarr(zarr.open_group(path, mode="r"))
    assert [axis.name for axis in image.attributes.ome.multiscales[0].axes] == ["c", "y", "x"]
    assert Labels.from_zarr(zarr.open_group(path / "labels", mode="r")).attributes.ome.labels == ["classes"]
    label = ImageLabel.from_zarr(zarr.open_group(path / "labels/classes", mode="r"))
    assert label.attributes.ome.image_label is not None
    location = parse_url(path, mode="r")
    assert location is not None
    first, *others = list(Reader(location)())
    np.testing.assert_array_equal(first.data[0].compute().transpose(1, 2, 0), pixels)
    assert first.metadata["channel_names"] == ["red", "green", "blue"]
    found = [node for node in others if "color" in node.metadata]
    np.testing.assert_array_equal(found[0].data[0].compute(), VALUES)
    assert {row["name"] for row in found[0].metadata["properties"].values()} >= {c.name for c in CLASSES}


def test_a_coarser_level_is_the_mean_and_lies_where_its_labels_do(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 60000, (901, 1203, 2), dtype=np.uint16)
    path = write(tmp_path, pixels, photometric="minisblack", planarconfig="contig")
    with open_image(path) as image, open_image(path / "labels/classes") as labels:
        assert [level.size for level in image.levels] == [level.size for level in labels.levels]
        assert image.georef == labels.georef == Georef.micrometres(Spacing.square(0.5, "um"))
        assert np.array_equal(image.read(image.levels[0].size.box), pixels)
        half = image.read(image.levels[1].size.box, 1)
        exact = pixels[:900, :1202].reshape(450, 2, 601, 2, 2).mean(axis=(1, 3))
        assert np.abs(half[:450, :601] - exact).max() <= 0.5
        assert np.array_equal(half[450, 601], pixels[900, 1202])


def test_a_mean_is_rounded_and_counts_what_is_there() -> None:
    assert mean2(np.array([[[0, 1, 9], [1, 0, 8]]], np.uint8)).tolist() == [[[1, 9]]]
    assert mean2(np.array([[[0.0, 1.0], [2.0, 4.0]]], np.float32)).tolist() == [[[1.75]]]
    full = np.full((1, 2, 2), 2**16 - 1, np.uint16)
    assert mean2(full).tolist() == [[[2**16 - 1]]]


def test_without_the_image_it_is_refused_and_made_again_it_is_replaced(tmp_path: Path) -> None:
    pixels = np.zeros((901, 1203, 3), np.uint8)
    path = write(tmp_path, pixels, photometric="rgb")
    (path / "stray").touch()
    write(tmp_path, pixels + 1, photometric="rgb")
    assert not (path / "stray").exists()
    assert open_image(path).read(open_image(path).levels[0].size.box).min() == 1
    labels = publish(tmp_path / "b", VALUES)
    with pytest.raises(ImageError, match="the image is gone or has changed, and this export holds its pixels"):
        EXPORTS["image"](labels, tmp_path / "b", None, {})
    assert {p.name for p in (tmp_path / "b").iterdir()} == {"labels.zarr"}
