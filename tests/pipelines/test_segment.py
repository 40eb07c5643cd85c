"""Segmenting real files from end to end: every label in its place, and nothing invented where there is no data."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import rasterio
import tifffile
import torch
from affine import Affine
from numpy.typing import NDArray
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from PIL import Image
from places import (
    CLASSES,
    STEP,
    UTM,
    WINDOW,
    calls,
    expected,
    holes,
    model,
    model_for,
    read_mask,
    rgb,
    seeded_network,
    write_image,
    write_png,
    write_raster,
    write_slide,
)
from rasterio.crs import CRS
from rasterio.enums import ColorInterp

from pipelines import Bundle, Options, segment
from pipelines.conversion import convert
from pipelines.errors import RequestError
from pipelines.job import Job, remember_plan
from tiling import NODATA, Box, ImageError, Spacing, open_image
from tiling.exports import EXPORTS, RegionWishes
from tiling.exports.regions import Amount
from tiling.lock import Busy
from veca_core import Model, ModelError
from veca_core.card import PixelSize

KINDS = ("png", "raster", "slide")
SIZES = [
    (1, 1),
    (WINDOW - 1, WINDOW - 1),
    (WINDOW, WINDOW),
    (WINDOW + 1, WINDOW + 1),
    (500, 500),
    (70, 133),
    (700, 333),
]
PLAIN = Options(device="cpu", tissue=False, exports=("mask",))


def labels(bundle: Bundle) -> NDArray[np.uint8]:
    whole = bundle.labels()
    return whole.read(whole.size.box)


def small_blocks(monkeypatch: pytest.MonkeyPatch, block: int = 64) -> None:
    monkeypatch.setattr("pipelines.planner.BLOCKS", (block,))
    monkeypatch.setattr("pipelines.segmentation.CHUNK", 32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("overlap", [0, WINDOW // 2])
def test_every_pixel_is_labelled_in_its_place(tmp_path: Path, kind: str, height: int, width: int, overlap: int) -> None:
    image = write_image(tmp_path, kind, height, width)
    bundle = segment(image, model_for(kind), tmp_path / "out", replace(PLAIN, overlap=overlap))
    assert np.array_equal(labels(bundle), expected(height, width))
    assert np.array_equal(read_mask(bundle.folder / "mask.tif"), expected(height, width))


@pytest.mark.parametrize("kind", ["png", "raster"])
@pytest.mark.parametrize(("height", "width"), SIZES[1:])
def test_invalid_pixels_are_no_data_and_all_others_are_right(
    tmp_path: Path, kind: str, height: int, width: int
) -> None:
    valid = holes(height, width)
    image = write_image(tmp_path, kind, height, width, valid)
    bundle = segment(image, model_for(kind), tmp_path / "out", PLAIN)
    assert np.array_equal(labels(bundle), np.where(valid, expected(height, width), NODATA))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("overlap", [0, WINDOW // 2])
def test_block_size_changes_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, overlap: int) -> None:
    valid = None if kind == "slide" else holes(150, 203)
    image = write_image(tmp_path, kind, 150, 203, valid)
    options = replace(PLAIN, overlap=overlap)
    whole = segment(image, model_for(kind), tmp_path / "whole", options)
    small_blocks(monkeypatch)
    cut = segment(image, model_for(kind), tmp_path / "cut", options)
    assert (whole.run.blocks, cut.run.blocks) == (1, 12)
    assert np.array_equal(labels(cut), labels(whole))
    for mine, theirs in zip(cut.labels().levels, whole.labels().levels, strict=True):
        assert np.array_equal(mine[:], theirs[:])
    assert np.array_equal(read_mask(cut.folder / "mask.tif"), read_mask(whole.folder / "mask.tif"))


@pytest.mark.parametrize(("block", "overlap"), [(32, 8), (64, 32)])
def test_block_size_changes_no_label_of_a_real_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, overlap: int
) -> None:
    card = model().card.model_copy(update={"classes": model().card.classes[:5]})
    network = Model(seeded_network(card), card, tmp_path, "random")
    pixels = np.random.default_rng(0).integers(0, 256, (130, 170, 3), dtype=np.uint8)
    options = replace(PLAIN, overlap=overlap, exports=())
    whole = segment(pixels, network, tmp_path / "whole", options, name="a")
    small_blocks(monkeypatch, block)
    cut = segment(pixels, network, tmp_path / "cut", options, name="a")
    assert len(np.unique(labels(whole))) > 1
    assert np.array_equal(labels(cut), labels(whole))


def test_a_window_is_run_once_however_small_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 32)
    used = model()
    before = calls(used)
    bundle = segment(write_png(tmp_path / "a.png", 150, 203), used, tmp_path / "out", PLAIN)
    assert calls(used) - before == bundle.run.windows


@pytest.mark.parametrize("nodata", [float("nan"), -9999.0])
def test_nodata_never_spoils_the_valid_pixels_around_it(tmp_path: Path, nodata: float) -> None:
    card = model().card
    floats = card.bands.model_copy(update={"dtype": "float32"})
    card = card.model_copy(update={"classes": card.classes[:5], "bands": floats})
    network = Model(seeded_network(card), card, tmp_path, "random")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64)).astype(np.float32)
    profile = {"driver": "GTiff", "count": 3, "height": 64, "width": 64, "dtype": "float32", "nodata": nodata}
    results = []
    for name, hole in {"mean": 0.0, "nodata": nodata}.items():
        pixels[:, 20:30, 40:50] = hole
        with rasterio.open(tmp_path / f"{name}.tif", "w", **profile, crs="EPSG:32633", transform=UTM) as dataset:
            dataset.write(pixels)
        results.append(labels(segment(tmp_path / f"{name}.tif", network, tmp_path / "out", PLAIN)))
    filled, holed = results
    inside = np.zeros((64, 64), bool)
    inside[20:30, 40:50] = True
    assert (holed[inside] == NODATA).all()
    # The network sees the band's mean, here 0, where there is no data.
    assert np.array_equal(holed[~inside], filled[~inside])
    assert len(np.unique(filled)) > 1


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("overlap", [0, 1, 24, WINDOW // 2])
def test_a_constant_model_gives_its_constant_on_every_valid_pixel(
    tmp_path: Path, height: int, width: int, overlap: int
) -> None:
    pixels, valid = np.zeros((height, width, 4), np.uint8), holes(height, width)
    pixels[..., :3], pixels[..., 3] = rgb(4, 6)[3, 5], 255 * valid
    Image.fromarray(pixels).save(tmp_path / "constant.png")
    bundle = segment(tmp_path / "constant.png", model(), tmp_path / "out", replace(PLAIN, overlap=overlap))
    assert np.array_equal(labels(bundle), np.where(valid, expected(4, 6)[3, 5], NODATA))


def test_an_image_without_any_data_is_no_data_everywhere(tmp_path: Path) -> None:
    image = write_png(tmp_path / "a.png", 80, 90, np.zeros((80, 90), bool))
    used = model()
    before = calls(used)
    bundle = segment(image, used, tmp_path / "out", replace(PLAIN, exports=("mask", "areas", "preview")))
    assert (labels(bundle) == NODATA).all()
    assert calls(used) == before
    assert bundle.areas()[-1]["pixels"] == str(80 * 90)


# What is left on disk, read by others.


def test_the_mask_of_a_raster_has_its_crs_and_place(tmp_path: Path) -> None:
    bundle = segment(write_raster(tmp_path / "a.tif", 70, 133), model(2), tmp_path / "out", PLAIN)
    with rasterio.open(bundle.folder / "mask.tif") as mask:
        assert mask.crs == CRS.from_epsg(32633)
        assert mask.transform.almost_equals(UTM)
        assert mask.nodata == NODATA
        assert mask.tags()["VECA_RUN"] == bundle.run.fingerprint
        assert np.array_equal(mask.read(1), expected(70, 133))
    assert bundle.run.grid.transform == pytest.approx(UTM[:6])


def test_the_mask_of_a_slide_has_its_pixel_size(tmp_path: Path) -> None:
    bundle = segment(write_slide(tmp_path / "a.ome.tif", 200, 300), model(), tmp_path / "out", PLAIN)
    with tifffile.TiffFile(bundle.folder / "mask.tif") as file:
        assert 'PhysicalSizeX="0.5"' in str(file.ome_metadata)
        assert np.array_equal(file.asarray(), expected(200, 300))
    with openslide.OpenSlide(bundle.folder / "mask.tif") as slide:
        assert slide.dimensions == (300, 200)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_open_with_ome_zarr(tmp_path: Path, kind: str) -> None:
    bundle = segment(write_image(tmp_path, kind, 70, 133), model_for(kind), tmp_path / "out", PLAIN)
    location = parse_url(bundle.folder / "labels.zarr", mode="r")
    assert location is not None
    (node,) = list(Reader(location)())
    assert np.array_equal(node.data[0].compute(), expected(70, 133))
    assert node.metadata["color"].keys() == {*range(0, STEP * CLASSES, STEP), NODATA}


def test_a_bundle_tells_how_it_was_made(tmp_path: Path) -> None:
    image = write_raster(tmp_path / "scene 1.tif", 70, 133)
    options = Options(device="cpu", cores=16, window=32, overlap=8)
    bundle = segment(image, model(2), tmp_path / "out", options)
    assert bundle.folder == tmp_path / "out" / "scene 1"
    run = Bundle.open(bundle.folder).run
    assert run == bundle.run
    assert (run.image.path, run.image.kind, run.image.size) == (str(image), "raster", (70, 133))
    assert (run.plan.cores, run.plan.window, run.plan.overlap, run.plan.device) == (16, 32, 8, "cpu")
    assert (run.model.name, run.model.digest) == ("places", "one")
    assert run.windows == 3 * 6
    assert (run.blocks, run.resumed_blocks) == (1, 0)
    assert run.peak_memory > 2**20
    assert set(run.outputs) == {"labels.zarr", "mask.tif", "regions.gpkg", "regions.csv", "areas.csv", "preview.png"}
    assert {p.name for p in bundle.folder.iterdir()} == {*run.outputs, "run.json"}
    assert {"predict", "export"} <= run.seconds.keys()
    assert {"python", "torch", "veca"} <= run.versions.keys()
    assert json.loads((bundle.folder / "run.json").read_text(encoding="utf-8"))["format"] == "veca-run/1"
    assert sum(int(row["pixels"]) for row in bundle.areas()[:-2]) == 70 * 133


def test_the_image_of_a_bundle_is_shown_unless_it_changed(tmp_path: Path) -> None:
    image = write_png(tmp_path / "a.png", 70, 80)
    bundle = segment(image, model(), tmp_path / "out", PLAIN)
    shown = bundle.image()
    assert shown is not None
    assert np.array_equal(shown.read(Box(0, 0, 70, 80)), rgb(70, 80))
    write_png(image, 70, 81)
    assert bundle.image() is None
    image.unlink()
    assert bundle.image() is None


# Spacing.


@pytest.mark.parametrize(
    ("um", "size"), [(0.5, (203, 309)), (1.0, (101, 154)), (2.0, (50, 77)), (0.8, (127, 193)), (0.25, (406, 618))]
)
def test_a_slide_is_read_at_the_models_spacing_and_the_result_spans_it(
    tmp_path: Path, um: float, size: tuple[int, int]
) -> None:
    image = write_slide(tmp_path / "a.ome.tif", 203, 309, um=0.5, levels=3)
    used = model(spacing=PixelSize(value=um, unit="um"))
    bundle = segment(image, used, tmp_path / "out", PLAIN)
    assert bundle.run.grid.size == size
    affine = Affine(*bundle.run.grid.transform)
    for corner in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = affine @ (corner[0] * size[1], corner[1] * size[0])
        assert x == pytest.approx(corner[0] * 309 * 0.5, abs=0.01 * um)
        assert y == pytest.approx(corner[1] * 203 * 0.5, abs=0.01 * um)
    with tifffile.TiffFile(bundle.folder / "mask.tif") as file:
        assert file.asarray().shape == size
    assert np.array_equal(read_mask(bundle.folder / "mask.tif"), labels(bundle))
    if um == 0.5:
        assert np.array_equal(labels(bundle), expected(203, 309))


@pytest.mark.parametrize("um", [1.0, 0.8, 0.25])
def test_what_is_labelled_at_another_spacing_lies_where_it_lies_on_the_slide(tmp_path: Path, um: float) -> None:
    pixels = np.zeros((160, 200, 3), np.uint8)
    pixels[:] = rgb(1, 2)[0, 1]
    pixels[40:80, 120:200] = rgb(3, 1)[2, 0]
    path = tmp_path / "a.ome.tif"
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", metadata={"axes": "YXS", **sizes}, ome=True)
    bundle = segment(path, model(spacing=PixelSize(value=um, unit="um")), tmp_path / "out", PLAIN)
    found, step = labels(bundle), um / 0.5
    inner = (slice(int(44 / step), int(76 / step)), slice(int(124 / step), int(196 / step)))
    assert (found[inner] == expected(3, 1)[2, 0]).all()
    for outer in (np.s_[: int(36 / step)], np.s_[int(84 / step) + 1 :], np.s_[:, : int(116 / step)]):
        assert (found[outer] == expected(1, 2)[0, 1]).all()


def test_a_stated_spacing_is_used_where_the_file_says_none(tmp_path: Path) -> None:
    image = write_png(tmp_path / "a.png", 100, 140)
    used = model(spacing=PixelSize(value=0.5, unit="um"))
    with pytest.raises(ImageError, match="does not say how large its pixels are"):
        segment(image, used, tmp_path / "out", PLAIN)
    stated = segment(image, used, tmp_path / "out", replace(PLAIN, spacing=Spacing.parse("0.25um")))
    assert stated.run.grid.size == (50, 70)
    native = segment(image, used, tmp_path / "out", replace(PLAIN, spacing="native"))
    assert np.array_equal(labels(native), expected(100, 140))


def test_a_spacing_that_differs_a_little_is_another_request(tmp_path: Path) -> None:
    image, used = write_png(tmp_path / "a.png", 100, 140), model(spacing=PixelSize(value=0.5, unit="um"))
    first = segment(image, used, tmp_path / "out", replace(PLAIN, spacing=Spacing.parse("0.25001um")))
    other = segment(image, used, tmp_path / "out", replace(PLAIN, spacing=Spacing.parse("0.25002um")))
    assert other.run.grid.transform != first.run.grid.transform


# Tissue.


def test_glass_is_left_out_of_slides_unless_asked_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(238, 241, (300, 400, 3), dtype=np.uint8)
    pixels[100:200, 150:300] = np.array([190, 90, 150]) + rng.integers(-20, 21, (100, 150, 3))
    path = tmp_path / "a.ome.tif"
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", metadata={"axes": "YXS", **sizes}, ome=True)
    used, options = model(), replace(PLAIN, tissue=True, window=32, overlap=8)
    before = calls(used)
    some = segment(path, used, tmp_path / "some", options)
    found = labels(some)
    assert (found[100:200, 150:300] != NODATA).all()
    assert (found[:60] == NODATA).all()
    assert (found[:, :100] == NODATA).all()
    assert calls(used) - before < some.run.windows / 2
    every = labels(segment(path, used, tmp_path / "every", replace(options, tissue=False)))
    assert (every != NODATA).all()
    assert np.array_equal(every[found != NODATA], found[found != NODATA])


# Again, resumed, changed.


def test_a_finished_result_is_returned_without_predicting_again(tmp_path: Path) -> None:
    image, used = write_raster(tmp_path / "a.tif", 70, 133), model(2)
    start = calls(used)
    first = segment(image, used, tmp_path / "out", PLAIN)
    before, written = calls(used), (first.folder / "mask.tif").stat().st_mtime_ns
    said: list[str] = []
    again = segment(image, used, tmp_path / "out", PLAIN, report=said.append)
    assert again == first
    assert calls(used) == before
    assert (first.folder / "mask.tif").stat().st_mtime_ns == written
    assert "holds this very result already" in said[-1]
    segment(image, used, tmp_path / "out", replace(PLAIN, overwrite=True))
    assert calls(used) - before == before - start > 0


def test_exports_asked_for_later_are_made_without_predicting_again(tmp_path: Path) -> None:
    image, used = write_raster(tmp_path / "a.tif", 70, 133), model(2)
    segment(image, used, tmp_path / "out", PLAIN)
    before = calls(used)
    more = segment(image, used, tmp_path / "out", replace(PLAIN, exports=("mask", "areas")))
    assert calls(used) == before
    assert set(more.run.outputs) == {"labels.zarr", "mask.tif", "areas.csv"}
    fewer = segment(image, used, tmp_path / "out", replace(PLAIN, exports=("areas",)))
    assert fewer == more
    (more.folder / "mask.tif").unlink()
    mended = segment(image, used, tmp_path / "out", replace(PLAIN, exports=("areas",)))
    assert calls(used) == before
    assert mended.run.outputs == more.run.outputs
    assert (more.folder / "mask.tif").exists(), "what the record names is there"


def test_labels_that_lost_a_file_are_refused_and_made_anew(tmp_path: Path) -> None:
    image, used = write_raster(tmp_path / "a.tif", 70, 133), model(2)
    bundle = segment(image, used, tmp_path / "out", PLAIN)
    before = calls(used)
    (bundle.folder / "labels.zarr" / "0" / "c" / "0" / "0").unlink()
    with pytest.raises(ImageError, match=r"1 of the . files of its level 0 are gone; copy it again"):
        convert(bundle.folder, ["areas"])
    assert segment(image, used, tmp_path / "out", PLAIN).complete
    assert calls(used) > before
    assert np.array_equal(read_mask(bundle.folder / "mask.tif"), expected(70, 133))


def test_what_convert_left_regions_out_of_is_no_finished_export(tmp_path: Path) -> None:
    image, used = write_png(tmp_path / "a.png", 70, 133), model()
    options = replace(PLAIN, exports=("areas", "regions"))
    bundle = segment(image, used, tmp_path / "out", options)
    whole = (bundle.folder / "regions.geojson").read_bytes()
    convert(bundle.folder, ["regions"], RegionWishes(least=Amount(1e6)))
    part = (bundle.folder / "regions.geojson").read_bytes()
    assert len(part) < len(whole)
    segment(image, used, tmp_path / "out", replace(PLAIN, exports=("areas",)))
    assert (bundle.folder / "regions.geojson").read_bytes() == part, "it was not asked for"
    said: list[str] = []
    segment(image, used, tmp_path / "out", options, report=said.append)
    assert (bundle.folder / "regions.geojson").read_bytes() == whole
    assert any("regions, of which veca convert was asked for a part, is made whole" in line for line in said)
    convert(bundle.folder, ["regions"], RegionWishes(least=Amount(1e6)))
    assert convert(bundle.folder, ["regions"]).run.partial == (), "converted again as it is, it is whole"


def test_a_run_that_was_killed_while_exporting_does_not_predict_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, used = write_raster(tmp_path / "a.tif", 70, 133), model(2)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(EXPORTS, "mask", killed)
        with pytest.raises(KeyboardInterrupt):
            segment(image, used, tmp_path / "out", PLAIN)
    before = calls(used)
    bundle = segment(image, used, tmp_path / "out", PLAIN)
    assert calls(used) == before
    assert np.array_equal(read_mask(bundle.folder / "mask.tif"), expected(70, 133))


def interrupt_after(blocks: int):  # type: ignore[no-untyped-def]
    def tick(done: int, _total: int) -> None:
        if done == blocks:
            raise KeyboardInterrupt

    return tick


def content(folder: Path) -> dict[str, bytes]:
    names = ("labels.zarr", "mask.tif", "areas.csv")
    paths = [
        p for name in names for p in ([folder / name] if (folder / name).is_file() else (folder / name).rglob("*"))
    ]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_goes_on_and_ends_the_same_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    small_blocks(monkeypatch)
    image = write_image(tmp_path, kind, 150, 203, None if kind == "slide" else holes(150, 203))
    options = replace(PLAIN, exports=("mask", "areas"), overlap=24)
    whole = segment(image, model_for(kind), tmp_path / "whole", options)
    for blocks in (5, 9):
        with pytest.raises(KeyboardInterrupt):
            segment(image, model_for(kind), tmp_path / "cut", options, tick=interrupt_after(blocks))
        assert not (tmp_path / "cut" / "image" / "run.json").exists()
    resumed = segment(image, model_for(kind), tmp_path / "cut", options)
    assert resumed.run.resumed_blocks in (9, 10), "a block that was being written when it stopped may be done"
    assert content(resumed.folder) == content(whole.folder)
    assert len(content(whole.folder)) > 12


@pytest.mark.parametrize(
    ("changed", "options"),
    [
        ({"digest": "two"}, PLAIN),
        ({}, replace(PLAIN, cores=8)),
        ({}, replace(PLAIN, window=32)),
        ({}, replace(PLAIN, overlap=0)),
        ({}, replace(PLAIN, spacing="native")),
    ],
    ids=["model", "cores", "window", "overlap", "spacing"],
)
def test_a_changed_model_or_option_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], options: Options
) -> None:
    small_blocks(monkeypatch)
    image = write_png(tmp_path / "a.png", 150, 203)
    with pytest.raises(KeyboardInterrupt):
        segment(image, model(), tmp_path / "out", PLAIN, tick=interrupt_after(5))
    other = segment(image, model(**changed), tmp_path / "out", options)
    assert other.run.resumed_blocks == 0
    first = segment(image, model(), tmp_path / "out", PLAIN)
    assert first.run.resumed_blocks == 0
    assert first.run.fingerprint != other.run.fingerprint


def test_a_changed_image_starts_anew(tmp_path: Path) -> None:
    image = write_png(tmp_path / "a.png", 70, 80)
    segment(image, model(), tmp_path / "out", PLAIN)
    write_png(image, 80, 70)
    assert np.array_equal(labels(segment(image, model(), tmp_path / "out", PLAIN)), expected(80, 70))


def test_files_of_an_earlier_result_do_not_stay_beside_a_new_one(tmp_path: Path) -> None:
    image = write_png(tmp_path / "a.png", 70, 80)
    segment(image, model(), tmp_path / "out", replace(PLAIN, exports=("mask", "areas", "preview")))
    (tmp_path / "out" / "a" / "notes.txt").write_text("mine", encoding="utf-8")
    bundle = segment(image, model(digest="two"), tmp_path / "out", PLAIN)
    assert {p.name for p in bundle.folder.iterdir()} == {"labels.zarr", "mask.tif", "run.json", "notes.txt"}
    assert bundle.areas() == []
    assert bundle.preview is None


# What cannot be done is said, and leaves nothing that looks finished.


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"cores": 7}, ModelError, "cannot run with 7 cores; ask for a multiple of 8 from 8 to 64"),
        ({"cores": 0}, ModelError, "cannot run with 0 cores"),
        ({"cores": 72}, ModelError, "cannot run with 72 cores"),
        ({"window": 8}, RequestError, "a window of 8 px is smaller than the model's patch of 16 px"),
        ({"overlap": 33}, RequestError, "the overlap must be 0 to half the window of 64 px, got 33"),
        ({"device": "tpu"}, RequestError, "there is no device 'tpu'; write auto, cpu, cuda or cuda:1"),
        ({"device": "cuda:99"}, RequestError, "cuda:99 was asked for, but torch sees"),
        ({"memory": 2**20}, RequestError, "1 MiB is not enough: the smallest plan"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path, options: dict[str, int], error: type[Exception], reason: str
) -> None:
    image = write_png(tmp_path / "a.png", 70, 80)
    with pytest.raises(error, match=reason) as caught:
        segment(image, model(), tmp_path / "out", replace(PLAIN, **options))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").rglob("*"))


def test_an_export_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RequestError, match="there is no export 'masks'; the exports are mask, areas, preview"):
        Options(exports=("masks",))


def test_bands_that_do_not_fit_are_named(tmp_path: Path) -> None:
    image = write_raster(tmp_path / "a.tif", 70, 80)
    with pytest.raises(RequestError, match=r"a.tif has 2 bands \(.*\), but places reads 3 bands \(red, green, blue\)"):
        segment(image, model(3), tmp_path / "out", PLAIN)


def test_an_array_is_segmented_like_a_file(tmp_path: Path) -> None:
    bundle = segment(rgb(70, 133), model(), tmp_path, PLAIN, name="mine")
    assert np.array_equal(labels(bundle), expected(70, 133))
    assert bundle.folder == tmp_path / "mine"


def test_an_unfinished_result_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        segment(write_png(tmp_path / "a.png", 150, 203), model(), tmp_path, PLAIN, tick=interrupt_after(5))
    with pytest.raises(RequestError, match=r"is no finished result: it has no run.json"):
        Bundle.open(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "veca-run/2"}'])
def test_a_damaged_run_json_is_named_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(RequestError, match=r"run\.json: ") as caught:
        Bundle.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_areas_are_those_of_the_labels(tmp_path: Path) -> None:
    valid = holes(70, 133)
    image = write_raster(tmp_path / "a.tif", 70, 133, valid)
    bundle = segment(image, model(2), tmp_path / "out", replace(PLAIN, exports=("areas",)))
    with (bundle.folder / "areas.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    counted = np.bincount(np.where(valid, expected(70, 133), NODATA).ravel(), minlength=256)
    for row in rows[:CLASSES]:
        assert int(row["pixels"]) == counted[int(row["value"])]
    assert [row["class"] for row in rows[CLASSES:]] == ["total", "no data"]


def test_bands_in_another_order_are_told_by_name(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64)).astype(np.uint8)
    card = model().card
    card = card.model_copy(update={"bands": card.bands.model_copy(update={"names": ("red", "green", "blue")})})
    network = Model(seeded_network(card), card, tmp_path, "random")
    profile = {"driver": "GTiff", "count": 3, "height": 64, "width": 64, "dtype": "uint8", "crs": "EPSG:32633"}
    results = []
    for name, order in {"rgb": (0, 1, 2), "bgr": (2, 1, 0)}.items():
        with rasterio.open(tmp_path / f"{name}.tif", "w", **profile, transform=UTM) as dataset:
            dataset.write(pixels[list(order)])
            dataset.colorinterp = [(ColorInterp.red, ColorInterp.green, ColorInterp.blue)[i] for i in order]
        results.append(labels(segment(tmp_path / f"{name}.tif", network, tmp_path / "out", PLAIN)))
    assert len(np.unique(results[0])) > 1
    assert np.array_equal(*results)


def test_another_number_type_than_the_model_was_trained_on_is_refused(tmp_path: Path) -> None:
    image = np.zeros((40, 40, 3), np.uint16)
    with pytest.raises(RequestError, match=r"holds uint16 values, but .* was trained on uint8"):
        segment(image, model(), tmp_path / "out", PLAIN)


def test_the_result_of_another_image_is_not_replaced_unasked(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        write_png(tmp_path / folder / "x.png", 20, 30)
    segment(tmp_path / "a" / "x.png", model(), tmp_path / "out", PLAIN)
    with pytest.raises(RequestError, match=r"holds the result of .*a/x\.png; choose another --out"):
        segment(tmp_path / "b" / "x.png", model(), tmp_path / "out", PLAIN)
    bundle = segment(tmp_path / "b" / "x.png", model(), tmp_path / "out", replace(PLAIN, overwrite=True))
    assert bundle.run.image.path.endswith("b/x.png")


def test_an_interrupted_run_keeps_its_plan_when_memory_has_become_scarcer(tmp_path: Path) -> None:
    image = write_png(tmp_path / "x.png", 30, 600)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        segment(image, model(), out, PLAIN, tick=interrupt_after(0))
    started = json.loads((out / "x" / "plan.json").read_text(encoding="utf-8"))["plan"]
    bundle = segment(image, model(), out, replace(PLAIN, memory=started["predicted"]))
    assert bundle.run.plan.block == started["block"]
    assert not (out / "x" / "plan.json").exists()


@pytest.mark.parametrize(
    ("began", "goes_on", "precision"),
    [(torch.bfloat16, torch.float32, "float32"), (torch.float32, torch.bfloat16, "float32"),
     (torch.bfloat16, torch.bfloat16, "bfloat16")],
)  # fmt: skip
def test_a_plan_in_bfloat16_is_not_kept_where_that_is_not_multiplied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, began: torch.dtype, goes_on: torch.dtype, precision: str
) -> None:
    source = open_image(write_png(tmp_path / "x.png", 30, 60))
    for dtype in (began, goes_on):
        monkeypatch.setattr("pipelines.planner.fast_precision", lambda _, dtype=dtype: dtype)
        job = Job.prepare(source, model(), tmp_path, PLAIN)
        remember_plan(job)
    assert job.plan.precision == precision


def test_starting_anew_plans_anew_for_the_memory_that_is_allowed(tmp_path: Path) -> None:
    image = write_png(tmp_path / "x.png", 900, 1200)
    roomy = segment(image, model(), tmp_path / "out", PLAIN).run.plan
    scarce = replace(PLAIN, memory=roomy.predicted - 1)
    assert segment(image, model(), tmp_path / "out", scarce).run.plan == roomy, "what is finished stays as it is"
    assert (
        segment(image, model(), tmp_path / "out", replace(scarce, overwrite=True)).run.plan.predicted < roomy.predicted
    )


@pytest.mark.parametrize("moment", ["predicting", "exporting"])
def test_a_second_run_into_the_same_folder_is_refused_and_spoils_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    image, folder, reached = write_raster(tmp_path / "a.tif", 70, 133), tmp_path / "out" / "a", []

    def meet(*_: object) -> list[Path]:
        plan = (folder / "plan.json").read_bytes()
        for options in (PLAIN, replace(PLAIN, cores=8), replace(PLAIN, overwrite=True)):
            with pytest.raises(Busy, match="another process is writing this image; wait for it"):
                segment(image, model(2), tmp_path / "out", options)
        assert (folder / "plan.json").read_bytes() == plan
        reached.append(moment)
        return []

    if moment == "exporting":
        monkeypatch.setitem(EXPORTS, "areas", meet)
        segment(image, model(2), tmp_path / "out", replace(PLAIN, exports=("mask", "areas")))
    else:
        segment(image, model(2), tmp_path / "out", PLAIN, tick=meet)
    assert reached
    assert np.array_equal(read_mask(folder / "mask.tif"), expected(70, 133))
    assert not list(folder.glob("*.lock"))


# What a run says of itself.


def test_a_run_says_where_its_time_went_and_whether_seams_show(tmp_path: Path) -> None:
    run = segment(write_png(tmp_path / "a.png", 200, 203), model(), tmp_path / "out", PLAIN).run
    assert run.shares.keys() == {"read", "compute", "write"}
    assert sum(run.shares.values()) == pytest.approx(1, abs=1e-3)
    assert run.seams is not None
    # The places change from pixel to pixel, at borders as everywhere.
    assert run.seams.across == pytest.approx(run.seams.elsewhere, abs=0.05)
    assert run.seams.elsewhere > 0.5
    assert run.steps_down == ()
