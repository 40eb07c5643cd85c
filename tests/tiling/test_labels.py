"""Finished labels are OME-Zarr 0.5 that others read, and carry their classes and their place."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyproj
import pytest
import zarr
from affine import Affine
from label_images import CLASSES, SLIDE, canvas, content, publish, random_labels
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr_models.v05.image_label import ImageLabel

from tiling.errors import ImageError
from tiling.geometry import Box, Size
from tiling.georef import Georef
from tiling.labels import LabelClass, Labels
from tiling.layers import Layer

VALUES = random_labels(1300, 700, smooth=5)
UTM = pyproj.CRS.from_epsg(32633).to_wkt()


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Labels:
    return publish(tmp_path_factory.mktemp("labels"), VALUES)


def test_labels_read_back_as_they_were_written(labels: Labels) -> None:
    assert (labels.name, labels.kind, labels.fingerprint) == ("slide 1", "slide", "abc")
    assert (labels.size, labels.georef, labels.classes) == (Size(1300, 700), SLIDE, CLASSES)
    np.testing.assert_array_equal(labels.read(labels.size.box), VALUES)
    box = Box(1201, 33, 99, 500)
    np.testing.assert_array_equal(labels.read(box), VALUES[box.slices])
    np.testing.assert_array_equal(zarr.open_array(labels.path / "0", mode="r")[:], VALUES)
    assert labels.read(Box(325 - 1, 0, 1, 175), level=2).shape == (1, 175)


def test_the_reader_of_ome_zarr_finds_levels_names_and_colours(labels: Labels) -> None:
    location = parse_url(labels.path, mode="r")
    assert location is not None
    (node,) = list(Reader(location)())
    for mine, theirs in zip(labels.levels, node.data, strict=True):
        np.testing.assert_array_equal(mine[:], theirs.compute())
    colors = {c.value: [*(part / 255 for part in c.color), 1.0] for c in CLASSES}
    assert node.metadata["color"] == colors | {255: [0.0, 0.0, 0.0, 0.0]}
    assert {value: row["name"] for value, row in node.metadata["properties"].items()} == {
        **{c.value: c.name for c in CLASSES},
        255: "no data",
    }
    assert [(axis["name"], axis["unit"]) for axis in node.metadata["axes"]] == [
        ("y", "micrometer"),
        ("x", "micrometer"),
    ]


@pytest.mark.parametrize("georef", [SLIDE, Georef.pixels(), Georef(Affine(30, 0, 4e5, 0, -30, 5e6), "crs", UTM)])
def test_the_metadata_are_valid_ome_zarr(tmp_path: Path, georef: Georef) -> None:
    labels = publish(tmp_path, VALUES, georef=georef)
    model = ImageLabel.from_zarr(zarr.open_group(labels.path, mode="r"))
    assert len(model.attributes.ome.multiscales[0].datasets) == len(labels.levels)
    unit = {"um": "micrometer", "crs": "meter", None: None}[georef.unit]
    assert [axis.unit for axis in model.attributes.ome.multiscales[0].axes] == [unit, unit]


def test_levels_align_at_the_middle_of_their_pixels(labels: Labels) -> None:
    datasets = zarr.open_group(labels.path, mode="r").attrs.asdict()["ome"]["multiscales"][0]["datasets"]
    for k, dataset in enumerate(datasets):
        scale, translation = (step[step["type"]] for step in dataset["coordinateTransformations"])
        assert scale == [0.5 * 2**k, 0.25 * 2**k]
        covered = np.arange(2**k)  # the level-0 rows under the first row of this level
        assert translation == [np.mean(covered) * 0.5, np.mean(covered) * 0.25]


@pytest.mark.parametrize(
    "georef",
    [
        Georef(Affine(0.3, 0.01, 500000.1, 0.02, -0.3, 2780000.7), "crs", UTM),
        Georef(Affine(1e-5, 0, 12.1, 0, -1e-5, 48), "crs", "EPSG:4326"),
        Georef(Affine(2, 0, 0, 0, 2, 0)),
    ],
)
def test_a_place_in_the_world_survives_exactly(tmp_path: Path, georef: Georef) -> None:
    assert publish(tmp_path, VALUES, georef=georef, kind="raster").georef == georef


def test_labels_travel_to_other_processes(labels: Labels) -> None:
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(labels)).read(labels.size.box), VALUES)


@pytest.mark.parametrize(("box", "level"), [(Box(0, 0, 1301, 1), 0), (Box(-1, 0, 2, 2), 0), (Box(0, 0, 1, 1), 3)])
def test_a_box_that_leaves_the_labels_is_refused(labels: Labels, box: Box, level: int) -> None:
    with pytest.raises(ImageError, match="level"):
        labels.read(box, level)


def test_what_is_no_finished_label_image_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    zarr.create_group(tmp_path / "group", attributes={"ome": {"version": "0.5"}})
    zarr.create_array(tmp_path / "array", shape=(2, 2), dtype="uint8")
    with canvas(tmp_path / "unfinished", Size(10, 10)):
        pass
    broken = publish(tmp_path, VALUES).path
    (broken / "zarr.json").write_text("{")
    for name in ("missing", "file", "empty", "group", "array", "unfinished", "labels.zarr"):
        with pytest.raises(ImageError) as error:
            Labels.open(tmp_path / name)
        assert name in str(error.value)
        assert "\n" not in str(error.value)


def test_a_label_image_without_one_of_its_levels_is_refused(tmp_path: Path) -> None:
    labels = publish(tmp_path, VALUES)
    (labels.path / "1" / "zarr.json").unlink()
    with pytest.raises(ImageError, match=r"labels\.zarr"):
        Labels.open(labels.path)


@pytest.mark.parametrize("gone", ["0/c/1/1", "1/c/0/0", "probability/0/c/0/0/1"])
def test_a_label_image_that_lost_a_file_is_refused(tmp_path: Path, gone: str) -> None:
    layer = Layer("probability", ("tree",))
    with canvas(tmp_path / "labels.zarr.partial", Size(600, 512), block=256, chunk=64, layers=[layer]) as one:
        for box in one.blocks:
            one.write(box, VALUES[box.slices], {"probability": np.ones((1, box.height, box.width), np.uint8)})
        path = one.publish(tmp_path / "labels.zarr").path
    (path / gone).unlink()
    with pytest.raises(ImageError, match=rf"1 of the \d+ files of its level {gone.split('/c/')[0]} are gone"):
        Labels.open(path)


def test_classes_that_share_a_value_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="share a value"):
        publish(tmp_path, VALUES, classes=(LabelClass(1, "a", (0, 0, 0)), LabelClass(1, "b", (0, 0, 0))))
    assert not content(tmp_path)


def test_nothing_in_the_description_tells_the_time(labels: Labels) -> None:
    description = json.loads((labels.path / "zarr.json").read_text())
    assert set(description["attributes"]) == {"ome", "veca"}
    assert set(description["attributes"]["veca"]) == {
        "name",
        "kind",
        "transform",
        "unit",
        "crs",
        "nodata",
        "files",
        "fingerprint",
        "scale",
    }
