"""What lies beside the labels is what the network said, kept, resumed and exported with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import rasterio
import tifffile
import torch
import zarr
from affine import Affine
from ome_zarr_models.v05.image import Image as OmeImage
from PIL import Image
from rio_cogeo import cog_validate

from pipelines import Bundle, Options, convert, segment
from pipelines.inference import autocast, fast_precision
from pipelines.job import Job
from tiling import NODATA, Spacing, open_image
from tiling.canvas import Canvas
from tiling.layers import STEPS, entropy, mean2, quantised
from veca_core import Model, load_model

BOTH = ("probability", "uncertainty")


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("confidence") / "a.png"
    pixels = np.random.default_rng(0).integers(0, 255, (100, 150, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[30:50, 40:90, 3] = 0
    Image.fromarray(pixels).save(path)
    return path


def options(**changed: Any) -> Options:
    return Options(**{"exports": BOTH, "spacing": Spacing.square(0.5, "um"), "window": 64, "overlap": 0} | changed)


@pytest.fixture(scope="module")
def bundle(model: Model, picture: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return segment(picture, model, tmp_path_factory.mktemp("out"), options(cores=64))


def softmax(model: Model, picture: Path, cores: int) -> np.ndarray:
    """(classes, 64, 64) of the first window, straight from the network."""
    source = open_image(picture)
    box = source.levels[0].size.box.intersect(type(source.levels[0].size.box)(0, 0, 64, 64))
    assert box is not None
    pixels, valid = source.read(box).astype(np.float32), source.valid(box)
    pixels[~valid] = model.network.mean.flatten().numpy()
    cpu = torch.device("cpu")
    with torch.inference_mode(), autocast(cpu, fast_precision(cpu)):
        logits = model.network(torch.from_numpy(pixels).permute(2, 0, 1)[None], cores)
    answer: np.ndarray = logits.float().softmax(1)[0].numpy()
    return answer


def test_probabilities_and_uncertainty_are_what_the_network_says(bundle: Bundle, model: Model, picture: Path) -> None:
    labels = bundle.labels()
    values = labels.read(labels.size.box)
    probability, uncertainty = (labels.layers[name].levels[0][:] for name in BOTH)
    assert probability.shape == (4, 100, 150)
    assert labels.layers["probability"].channels == tuple(c.name for c in labels.classes)
    assert labels.layers["uncertainty"].channels == ("entropy", "disagreement")
    few, every = softmax(model, picture, 8), softmax(model, picture, 64)
    few, every = few[:, :36], every[:, :36]  # below, and to the right, windows meet
    seen = values[:36, :64] != NODATA
    assert not seen.all()
    for found, expected in {
        0: (probability[:, :36, :64], every),
        1: (uncertainty[:1, :36, :64], entropy(every)[None]),
        2: (uncertainty[1:, :36, :64], np.abs(few - every).sum(0, keepdims=True) / 2),
    }.values():
        assert (found[:, ~seen] == NODATA).all()
        np.testing.assert_allclose(found[:, seen] / STEPS, expected[:, seen], atol=0.5 / STEPS + 1e-3)
    by_value = np.array([c.value for c in labels.classes])[probability.argmax(axis=0)]
    clear = np.sort(probability, axis=0)[-1] > np.sort(probability, axis=0)[-2]
    np.testing.assert_array_equal(by_value[clear & (values != NODATA)], values[clear & (values != NODATA)])


def test_labels_do_not_depend_on_what_lies_beside_them(
    bundle: Bundle, model: Model, picture: Path, tmp_path: Path
) -> None:
    bare = segment(picture, model, tmp_path, options(cores=64, exports=()))
    assert not bare.labels().layers
    np.testing.assert_array_equal(bare.labels().levels[0][:], bundle.labels().levels[0][:])
    # Asked for later, they are made then, and the labels with them.
    again = segment(picture, model, tmp_path, options(cores=64))
    assert set(again.labels().layers) == set(BOTH)
    assert {"probability.tif", "uncertainty.tif"} <= set(again.run.outputs)


def test_layers_are_ome_zarr_images_with_a_pyramid_of_means(bundle: Bundle) -> None:
    for name in BOTH:
        group = zarr.open_group(bundle.folder / "labels.zarr" / name, mode="r")
        image = OmeImage.from_zarr(group)
        assert [axis.name for axis in image.ome_attributes.multiscales[0].axes] == ["c", "y", "x"]
        assert len(image.ome_attributes.multiscales[0].datasets) == len(bundle.labels().levels)


def test_the_pyramid_is_the_mean_of_what_is_data() -> None:
    values = np.array([[[0, 10, 255, 255, 7], [20, 31, 255, 4, 255], [8, 255, 9, 10, 11]]], np.uint8)
    assert mean2(values).tolist() == [[[15, 255, 7], [8, 10, 11]]]
    random = np.random.default_rng(0).integers(0, 255, (3, 40, 60), dtype=np.uint8)
    exact = random.reshape(3, 20, 2, 30, 2).mean(axis=(2, 4))
    assert np.abs(mean2(random) - exact).max() <= 0.5


def test_a_slides_layers_open_as_ome_tiff(bundle: Bundle) -> None:
    labels = bundle.labels()
    for name in BOTH:
        layer = labels.layers[name]
        with tifffile.TiffFile(bundle.folder / f"{name}.tif") as file:
            assert file.is_ome
            assert file.series[0].axes == "CYX"
            np.testing.assert_array_equal(file.series[0].asarray(), layer.levels[0][:])
            assert all(f'Name="{channel}"' in (file.ome_metadata or "") for channel in layer.channels)
            assert "not measured" in (file.ome_metadata or "")
        with openslide.OpenSlide(bundle.folder / f"{name}.tif") as slide:
            assert slide.dimensions == (150, 100)


def test_a_rasters_layers_open_as_cloud_optimized_geotiff(model: Model, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(1, 255, (3, 90, 110), dtype=np.uint8)
    place = Affine(0.5, 0, 4e5, 0, -0.5, 5e6)
    with rasterio.open(
        tmp_path / "r.tif", "w", driver="GTiff", width=110, height=90, count=3, dtype="uint8", crs="EPSG:32633",
        transform=place, photometric="RGB",
    ) as file:  # fmt: skip
        file.write(pixels)
    bundle = segment(tmp_path / "r.tif", model, tmp_path / "out", options(spacing="native", cores=8))
    for name in BOTH:
        path = bundle.folder / f"{name}.tif"
        assert cog_validate(path, strict=True) == (True, [], [])
        with rasterio.open(path) as file:
            assert (file.crs, file.transform, file.nodata) == ("EPSG:32633", place, NODATA)
            layer = bundle.labels().layers[name]
            assert file.descriptions == layer.channels
            assert file.scales == pytest.approx([1 / STEPS] * file.count)
            np.testing.assert_array_equal(file.read(), layer.levels[0][:])
            assert file.tags()["VECA_CALIBRATION_ERROR"] == "not measured"


def test_a_calibration_error_that_was_measured_is_said(model: Model, picture: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from veca_core.card import Score

    score = Score(cores=8, mean_iou=0.5, mean_dice=0.6, iou={}, ece=0.0321)
    measured = replace(model, card=model.card.model_copy(update={"scores": (score,), "validation": "two slides"}))
    bundle = segment(picture, measured, tmp_path, options(cores=8, exports=("probability",)))
    about = bundle.labels().layers["probability"].about
    assert about["calibration_error"] == "0.0321"
    assert about["calibration_measured_on"] == "two slides"


def test_a_block_is_done_when_all_of_its_arrays_are(
    model: Model, picture: Path, tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the layers of a block, and with a layer that the disk then lost, a run ends with the same bytes."""
    from tiling import canvas as module

    put, count = module._put, 0

    def full(array: Any, folder: Path, *rest: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(28, "No space left on device", str(folder))
        put(array, folder, *rest)

    monkeypatch.setattr(module, "_put", full)
    with pytest.raises(OSError, match="No space left"):
        segment(picture, model, tmp_path, options(cores=64))
    assert not (tmp_path / "a" / "labels.zarr").exists()
    monkeypatch.setattr(module, "_put", put)
    again = segment(picture, model, tmp_path, options(cores=64))
    assert again.run.resumed_blocks == 0
    for name in BOTH:
        np.testing.assert_array_equal(
            again.labels().layers[name].levels[0][:], bundle.labels().layers[name].levels[0][:]
        )


def test_a_canvas_wants_all_of_its_layers(bundle: Bundle, tmp_path: Path) -> None:
    labels = bundle.labels()
    from tiling.layers import Layer

    with Canvas.create(
        tmp_path / "x.partial", size=labels.size, block=512, chunk=512, classes=labels.classes, georef=labels.georef,
        kind="slide", name="a", fingerprint="f", layers=[Layer("probability", ("a", "b"))],
    ) as canvas:  # fmt: skip
        box = next(canvas.blocks)
        with pytest.raises(ValueError, match="layers"):
            canvas.write(box, labels.read(box))
        canvas.write(box, labels.read(box), {"probability": labels.layers["probability"].levels[0][:2]})
        folder = canvas.path / "probability" / "0"
        (shard,) = [p for p in folder.rglob("*") if p.is_file() and p.name != "zarr.json"]
        shard.write_bytes(shard.read_bytes()[:-40])
        assert canvas.damaged() == [box]


def test_layers_are_exported_later_or_refused_in_one_line(
    bundle: Bundle, model: Model, picture: Path, tmp_path: Path, veca: Any
) -> None:
    before = (bundle.folder / "probability.tif").read_bytes()
    convert(bundle.folder, ["probability"])
    assert (bundle.folder / "probability.tif").read_bytes() == before
    bare = segment(picture, model, tmp_path, options(cores=8, exports=()))
    said = veca("convert", bare.folder, "--exports", "probability")
    assert said.status == 1
    assert "holds no probability; segment the image again with --exports probability" in said.line


def test_bytes_stand_for_what_they_say() -> None:
    values = np.random.default_rng(0).random((3, 5, 7), dtype=np.float32)
    seen = np.ones((5, 7), bool)
    seen[2] = False
    stored = quantised(values, seen)
    assert (stored[:, 2] == NODATA).all()
    np.testing.assert_allclose(stored[:, seen] / STEPS, values[:, seen], atol=0.5 / STEPS + 1e-6)
    assert entropy(np.array([[[1.0]], [[0.0]]], np.float32))[0, 0] == pytest.approx(0, abs=1e-6)
    assert entropy(np.full((5, 1, 1), 0.2, np.float32))[0, 0] == pytest.approx(1)


def test_the_plan_of_a_run_counts_what_lies_beside_its_labels(model: Model, tmp_path: Path) -> None:
    pixels = np.zeros((3000, 3000, 3), np.uint8)
    plain, beside = (
        Job.prepare(open_image(pixels), model, tmp_path, options(exports=exports, cores=64)).plan
        for exports in (("mask",), ("mask", *BOTH))
    )
    classes, block = len(model.card.classes), beside.block**2
    assert beside.block == plain.block
    assert beside.predicted - plain.predicted >= block * (4 + classes + 2), "the disagreement's sums, and the bytes"
