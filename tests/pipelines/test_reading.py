"""What reaches a result of how an image was read: chosen bands, damaged tiles, and nothing of the patient."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import tifffile
import zarr
from conftest import Veca
from places import expected, model, model_for, rgb, write_raster, write_slide

from pipelines import Bundle, Options, segment
from pipelines.bundle import image_fingerprint
from pipelines.errors import RequestError
from tiling import NODATA, ImageError
from tiling.canvas import Canvas
from tiling.exports import EXPORTS
from tiling.storage import LocalBytes

PLAIN = Options(device="cpu", tissue=False, exports=("mask",))


def labels(bundle: Bundle) -> Any:
    whole = bundle.labels()
    return whole.read(whole.size.box)


def write_shuffled(path: Path, names: tuple[str, ...] = ("nir", "blue", "red", "green")) -> Path:
    """The places in three of four bands, in an order that is not the model's."""
    colours = dict(zip(("red", "green", "blue"), rgb(96, 130).transpose(2, 0, 1), strict=True))
    profile = {"driver": "GTiff", "count": len(names), "height": 96, "width": 130, "dtype": "uint8"}
    place = rasterio.Affine(2, 0, 5e5, 0, -2, 5e6)
    with rasterio.open(path, "w", **profile, crs="EPSG:32633", transform=place, photometric="minisblack") as dataset:
        for i, name in enumerate(names, 1):
            dataset.write(colours.get(name, np.full((96, 130), 77, np.uint8)), i)
        dataset.descriptions = names
    return path


@pytest.mark.parametrize("chosen", [("red", "green", "blue"), ("3", "4", "2"), ("Red", "4", "blue")])
def test_the_bands_that_are_chosen_are_the_models_in_that_order(tmp_path: Path, chosen: tuple[str, ...]) -> None:
    image = write_shuffled(tmp_path / "a.tif")
    bundle = segment(image, model(), tmp_path / "out", replace(PLAIN, bands=chosen))
    assert np.array_equal(labels(bundle), expected(96, 130))
    assert bundle.run.image.bands == ("red", "green", "blue")
    view = bundle.image()
    assert view is not None
    assert np.array_equal(view.read(view.size.box), rgb(96, 130))


def test_bands_are_taken_literally_even_where_their_names_are_the_models(tmp_path: Path) -> None:
    image = write_shuffled(tmp_path / "a.tif", ("blue", "green", "red"))
    by_name = segment(image, model(), tmp_path / "named", PLAIN)
    literal = segment(image, model(), tmp_path / "literal", replace(PLAIN, bands=("1", "2", "3")))
    assert np.array_equal(labels(by_name), expected(96, 130))
    assert not np.array_equal(labels(literal), expected(96, 130))
    assert by_name.run.fingerprint != literal.run.fingerprint


def test_too_many_bands_are_told_in_one_short_line(tmp_path: Path) -> None:
    names = tuple(f"channel {i + 1}" for i in range(206))
    image = write_shuffled(tmp_path / "cube.tif", names)
    with pytest.raises(RequestError) as refused:
        segment(image, model(), tmp_path / "out", PLAIN)
    said = str(refused.value)
    assert "has 206 bands (channel 1, channel 2," in said
    assert "but places reads 3 bands (red, green, blue); choose them with --bands, by name or by number" in said
    assert len(said) < 400
    with pytest.raises(ImageError, match="has no band 'nir'; it has 206 bands"):
        segment(image, model(), tmp_path / "out", replace(PLAIN, bands=("nir", "1", "2")))


def test_the_command_line_chooses_bands_for_info_plan_and_segment(veca: Veca, tiny_model: Path, tmp_path: Path) -> None:
    image = write_shuffled(tmp_path / "a.tif")
    said = veca("info", image, "--bands", "red, green,2", "--json")
    assert json.loads(said.out)["bands"] == ["red", "green", "blue"]
    assert veca("plan", image, "--model", tiny_model).status == 2
    assert veca("plan", image, "--model", tiny_model, "--bands", "red,green,blue").status == 0
    out = tmp_path / "out"
    said = veca("segment", image, "--model", tiny_model, "--out", out, "--bands", "3,4,2", "--exports", "areas")
    assert said.status == 0
    assert Bundle.open(out / "a").run.image.chosen == ("3", "4", "2")
    assert veca("info", image, "--bands", "9").line.endswith("choose by name, or by number from 1")


def spoil(path: Path, tile: int) -> Path:
    """Overwrites the start of one 64 x 64 tile of the finest level."""
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages.first.dataoffsets[tile]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(40))
    return path


def write_map(path: Path) -> Path:
    """Two bands of places, compressed in tiles of 64 px."""
    plain = write_raster(path.with_name("plain.tif"), 200, 260)
    with rasterio.open(plain) as dataset:
        profile = {**dataset.profile, "compress": "deflate", "interleave": "pixel"}
        with rasterio.open(path, "w", **profile) as copy:
            copy.write(dataset.read())
    return path


@pytest.fixture(params=["slide", "raster"])
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """200 x 260 px of places, whose tile at rows 64..128, columns 128..192 cannot be decoded."""
    if request.param == "slide":
        return spoil(write_slide(tmp_path / "image.ome.tif", 200, 260, levels=1), 5 + 2)
    return spoil(write_map(tmp_path / "image.tif"), 5 + 2)


def holed() -> Any:
    right = expected(200, 260)
    right[64:128, 128:192] = NODATA
    return right


def used(image: Path) -> Any:
    return model_for("slide" if image.name.endswith(".ome.tif") else "raster")


def test_a_tile_that_cannot_be_decoded_is_no_data_and_told_with_its_place(damaged: Path, tmp_path: Path) -> None:
    told: list[str] = []
    bundle = segment(damaged, used(damaged), tmp_path / "out", PLAIN, report=told.append)
    assert np.array_equal(labels(bundle), holed())
    (line,) = [line for line in bundle.run.warnings if "cannot be decoded" in line]
    assert line.startswith("image: rows 64..128, columns 128..192 of level 0 cannot be decoded")
    assert line in told
    assert [record.box for record in bundle.run.damage] == [(64, 128, 64, 64)]


def test_strict_makes_it_fail_and_leaves_nothing_finished(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"image\.\S*tif: cannot read rows"):
        segment(damaged, used(damaged), tmp_path / "out", replace(PLAIN, strict=True))
    assert not (tmp_path / "out/image/run.json").exists()


def test_strict_refuses_the_result_of_a_run_that_was_not(damaged: Path, tmp_path: Path) -> None:
    segment(damaged, used(damaged), tmp_path / "out", PLAIN)
    for exports in (("mask",), ("mask", "areas")):
        with pytest.raises(ImageError, match=r"cannot read rows 64\.\.128.*found by an earlier run"):
            segment(damaged, used(damaged), tmp_path / "out", replace(PLAIN, strict=True, exports=exports))


def test_a_run_that_was_interrupted_or_is_exported_again_still_tells_its_damage(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.planner.BLOCKS", (64,))
    monkeypatch.setattr("pipelines.segmentation.CHUNK", 32)
    write, count = Canvas.write, 0

    def interrupted(self: Canvas, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 17:
            raise KeyboardInterrupt
        write(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Canvas, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            segment(damaged, used(damaged), tmp_path / "out", PLAIN)
    bundle = segment(damaged, used(damaged), tmp_path / "out", PLAIN)
    assert bundle.run.resumed_blocks > 10
    assert np.array_equal(labels(bundle), holed())
    assert [record.box for record in bundle.run.damage] == [(64, 128, 64, 64)]
    again = segment(damaged, used(damaged), tmp_path / "out", replace(PLAIN, exports=("mask", "areas")))
    assert again.run.damage == bundle.run.damage
    assert again.run.warnings == bundle.run.warnings
    assert not list((tmp_path / "out/image").glob("*damage*"))


def test_an_image_of_which_nothing_can_be_decoded_fails(shared_data: Path, tmp_path: Path) -> None:
    image = shared_data / "odd/wsi/openslide_unreadable.svs"
    with pytest.raises(ImageError, match=r"none of its tiles can be decoded .*; copy it again"):
        segment(image, model(), tmp_path / "out", PLAIN)
    assert not (tmp_path / "out/openslide_unreadable/labels.zarr").exists()


def secrets_of(slide: Path) -> set[str]:
    """Every value in a slide's descriptions that could tell a person, a machine or a time."""
    with tifffile.TiffFile(slide) as tif:
        texts = [page.description for page in tif.pages]
    values = {value.strip() for text in texts for _, value in re.findall(r"\|([^=|]+)=([^|]*)", text)}
    dates = {match for text in texts for match in re.findall(r"\d\d/\d\d/\d\d|\d\d:\d\d:\d\d", text)}
    numbers = re.compile(r"[-+0-9.]*")
    return {value for value in values | dates if len(value) > 3 and not numbers.fullmatch(value)}


def everything_written(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file as it is, and what compressed ones hold."""
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        yield str(file), file.read_bytes()
    for store in folder.rglob("labels.zarr"):
        for _, array in zarr.open_group(store, mode="r").arrays():
            yield str(store), np.asarray(array[:]).tobytes()


def test_label_and_macro_are_never_decoded_and_no_output_holds_them_or_the_slides_tags(
    shared_data: Path, tiny_model: Path, tmp_path: Path, veca: Veca, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[tuple[int, int]] = set()
    read_at = LocalBytes.read_at

    def watched(self: LocalBytes, offset: int, count: int) -> bytes:
        read.add((offset, count))
        return read_at(self, offset, count)

    monkeypatch.setattr(LocalBytes, "read_at", watched)
    slide = tmp_path / "specimen.svs"
    shutil.copy(shared_data / "odd/wsi/CMU-1-Small-Region.svs", slide)
    secrets = secrets_of(slide)
    assert {"CPAPERIOCS", "CMU-1"} & secrets, "the slide's own tags are what this test looks for"
    exports = ",".join(EXPORTS)
    said = veca("segment", slide, "--model", tiny_model, "--out", tmp_path / "out", "--exports", exports)
    assert said.status == 0, said.err
    with tifffile.TiffFile(slide) as tif:
        specimen = zip(tif.pages.first.dataoffsets, tif.pages.first.databytecounts, strict=True)
        assert read
        assert read <= set(specimen), "whatever is read of the file's pixels lies in the specimen's own tiles"
        strips = [
            slide.read_bytes()[o : o + n]
            for page in tif.pages[1:]
            for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]
        assert len(tif.pages) >= 3, "label and macro are there to be left alone"
    told = [("stdout", said.out.encode()), ("stderr", said.err.encode()), ("info", veca("info", slide).out.encode())]
    for name, content in [*everything_written(tmp_path / "out"), *told]:
        for secret in secrets:
            assert secret.encode() not in content, f"{name} holds {secret!r}"
            assert secret.encode("utf-16-le") not in content, f"{name} holds {secret!r}"
        assert not any(strip[:64] in content for strip in strips if len(strip) > 64), (
            f"{name} holds an associated image"
        )


@pytest.mark.parametrize("changed", ["e.hdr", "a.tif"])
def test_a_header_beside_an_image_and_what_a_vrt_in_a_vrt_refers_to_are_part_of_it(
    tmp_path: Path, changed: str
) -> None:
    """Else a run is taken for the finished one of another place, or of other pixels."""
    write_raster(tmp_path / "a.tif", 20, 30)
    for name, driver in {"e.dat": "ENVI", "b.vrt": "VRT"}.items():
        rasterio.shutil.copy(tmp_path / "a.tif", tmp_path / name, driver=driver)
    (tmp_path / "c.vrt").write_text((tmp_path / "b.vrt").read_text().replace("a.tif", "b.vrt"))
    image = str(tmp_path / ("e.dat" if changed == "e.hdr" else "c.vrt"))
    before = image_fingerprint(image)
    assert image_fingerprint(image) == before
    with (tmp_path / changed).open("ab") as file:
        file.write(b"\n")
    assert image_fingerprint(image) != before
