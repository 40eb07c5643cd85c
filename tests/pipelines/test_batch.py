"""Many images at once: one bad one is reported with its reason, and the rest are done."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import zarr
from places import expected, model, read_mask, write_png, write_raster, write_slide

from pipelines import Bundle, Options, segment, segment_all
from pipelines.errors import RequestError
from pipelines.images import is_image_name, list_images
from pipelines.segmentation import Failure, bundle_names
from tiling import ImageError
from veca_core import ModelError

GOES_ON = "free some space, and the same command goes on from here"
PLAIN = Options(device="cpu", tissue=False, exports=("mask",))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder as they come: two good images, and all sorts of bad ones."""
    folder = tmp_path / "images"
    folder.mkdir()
    write_png(folder / "a.png", 70, 80)
    write_slide(folder / "z.ome.tif", 90, 70)
    whole = write_raster(folder / "two bands.tif", 70, 80).read_bytes()
    (folder / "b cut short.tif").write_bytes(write_slide(folder / "c.tif", 200, 200).read_bytes()[:3000])
    (folder / "c.tif").unlink()
    (folder / "d empty.tif").touch()
    (folder / "e text.tif").write_text("these are not the pixels", encoding="utf-8")
    (folder / "f half.tif").write_bytes(whole[: len(whole) // 2])
    return folder


def summary(out: Path) -> dict[str, dict[str, str]]:
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        return {Path(row["image"]).name: row for row in csv.DictReader(file)}


def test_a_bad_image_is_reported_and_the_rest_are_done(tmp_path: Path, mixed: Path) -> None:
    images, said = list_images([mixed]), list[str]()
    results = segment_all(images, model(), tmp_path / "out", PLAIN, report=said.append)
    assert len(results) == len(images) == 7
    done = {r.folder.name: r for r in results if isinstance(r, Bundle)}
    failed = {r.image.name: r.reason for r in results if isinstance(r, Failure)}
    assert done.keys() == {"a", "z"}
    assert np.array_equal(read_mask(done["a"].folder / "mask.tif"), expected(70, 80))
    assert np.array_equal(read_mask(done["z"].folder / "mask.tif"), expected(90, 70))
    assert failed.keys() == {"b cut short.tif", "d empty.tif", "e text.tif", "f half.tif", "two bands.tif"}
    for name, reason in failed.items():
        assert "\n" not in reason
        assert name in reason, "the reason says which file it is about"
        assert not reason.startswith(("Exception", "ValueError", "TypeError", "KeyError"))
    assert "2 bands" in failed["two bands.tif"]
    assert "empty" in failed["d empty.tif"]
    rows = summary(tmp_path / "out")
    assert list(rows) == [path.name for path in images]
    assert {name for name, row in rows.items() if row["status"] == "done"} == {"a.png", "z.ome.tif"}
    assert {name: rows[name]["reason"] for name in failed} == failed
    assert not any("Traceback" in line for line in said)
    assert {p.name for p in (tmp_path / "out").glob("*/run.json")} == {"run.json"}
    assert len(list((tmp_path / "out").glob("*/run.json"))) == 2


def test_a_second_batch_adds_to_the_summary_and_replaces_what_it_repeats(tmp_path: Path) -> None:
    a, b = write_png(tmp_path / "a.png", 20, 30), tmp_path / "b.png"
    b.touch()
    segment_all([a, b], model(), tmp_path / "out", PLAIN)
    write_png(b, 20, 30)
    segment_all([b], model(), tmp_path / "out", PLAIN)
    assert {name: row["status"] for name, row in summary(tmp_path / "out").items()} == {
        "a.png": "done",
        "b.png": "done",
    }


@pytest.mark.parametrize(("name", "status"), [("b.png", "done"), (os.fsdecode(b"b\xff.png"), "failed")])
def test_an_image_that_was_missing_keeps_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, status: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    image = Path("images", name)
    segment_all([image], model(), "out", PLAIN)
    write_png(image, 20, 30)
    for _ in range(2):
        segment_all([image], model(), "out", PLAIN)
    with Path("out/summary.csv").open(newline="", encoding="utf-8") as file:
        assert [row["status"] for row in csv.DictReader(file)] == [status]


def test_a_line_of_the_summary_that_somebody_changed_spoils_no_batch(tmp_path: Path) -> None:
    a, out = write_png(tmp_path / "a.png", 20, 30), tmp_path / "out"
    segment_all([a], model(), out, PLAIN)
    with (out / "summary.csv").open("a", encoding="utf-8") as file:
        file.write("/elsewhere/b.png,done,b,64,1.0,a remark,and another\n/elsewhere/c.png,done\n")
    segment_all([a], model(), out, PLAIN)
    assert [row["status"] for row in summary(out).values()] == ["done"] * 3


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "image,status\nx"])
def test_a_foreign_summary_is_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.csv").write_text(text, encoding="utf-8")
    segment_all([write_png(tmp_path / "a.png", 20, 30)], model(), tmp_path, PLAIN)
    assert summary(tmp_path).keys() == {"a.png"}


@pytest.mark.parametrize(
    ("error", "reason", "traced"),
    [
        (OSError(5, "Input/output\nerror"), "Input/output error", False),
        (OSError(28, "No space left\non device"), f"No space left on device; {GOES_ON}", False),
        (RuntimeError("something\nwith two lines"), "RuntimeError: something with two lines", True),
    ],
    ids=["of the machine", "full disk", "unforeseen"],
)
def test_another_error_is_one_image_s_failure_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str, traced: bool
) -> None:
    images, said = [write_png(tmp_path / f"{name}.png", 20, 30) for name in "ab"], list[str]()
    whole = Path.mkdir

    def full(self: Path, *args: object, **options: object) -> None:
        if self.name == "a":
            raise error
        whole(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", full)
    first, second = segment_all(images, model(), tmp_path / "out", PLAIN, report=said.append)
    assert isinstance(first, Failure)
    assert first.reason == reason
    assert isinstance(second, Bundle)
    assert any("Traceback" in line for line in said) == traced


@pytest.mark.parametrize(
    ("options", "error"),
    [(Options(cores=7), ModelError), (Options(device="tpu"), RequestError)],
    ids=["cores", "device"],
)
def test_what_no_image_can_be_run_with_is_refused_before_the_first(
    tmp_path: Path, options: Options, error: type[Exception]
) -> None:
    with pytest.raises(error):
        segment_all([write_png(tmp_path / "a.png", 20, 30)], model(), tmp_path / "out", options)
    assert not (tmp_path / "out" / "summary.csv").exists()


def test_two_images_of_one_name_get_two_folders(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    images = [write_png(tmp_path / "x" / "a.png", 20, 30), write_png(tmp_path / "y" / "a.png", 30, 20)]
    results = segment_all(images, model(), tmp_path / "out", PLAIN)
    assert [r.folder.name for r in results if isinstance(r, Bundle)] == ["x-a.png", "y-a.png"]
    for result, (height, width) in zip(results, [(20, 30), (30, 20)], strict=True):
        assert isinstance(result, Bundle)
        assert np.array_equal(read_mask(result.folder / "mask.tif"), expected(height, width))


def test_only_images_that_share_a_name_get_a_longer_one(tmp_path: Path) -> None:
    named = {
        ("a.png", "b.png"): ["a", "b"],
        ("a.png", "a.tif", "b.png"): ["a.png", "a.tif", "b"],
        ("x/a.png", "y/a.png", "b.png"): ["x-a.png", "y-a.png", "b"],
        ("a.png", "a.tif", "a.png.jpg"): None,
        ("x/x/a.png", "y/x/a.png", "y/b.png"): ["x-x-a.png", "y-x-a.png", "b"],
        ("x-x/a.png", "x/x/a.png", "x/x-x/a.png"): ["x-x-a.png", "x-a.png", "x-x-x-a.png"],
    }
    for paths, names in named.items():
        images = [tmp_path / path for path in paths]
        if names is not None:
            assert bundle_names(images) == names
            continue
        try:
            assert len(set(bundle_names(images))) == len(images)
        except RequestError as error:
            assert "segment them into different folders" in str(error)  # noqa: PT017 - either is right


def test_a_folder_gives_its_own_images_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.TIF", "a.svs", "c.jpeg", ".hidden.tif", "notes.txt", "summary.csv", "d.jp2", "e.vrt"):
        (tmp_path / name).touch()
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "f.tif").touch()
    (tmp_path / "g.zarr").mkdir()
    assert [p.name for p in list_images([tmp_path])] == ["a.svs", "b.TIF", "c.jpeg", "d.jp2", "e.vrt", "g.zarr"]


def test_a_folder_that_is_a_zarr_array_is_one_image_whatever_its_name(tmp_path: Path) -> None:
    zarr.save_array(tmp_path / "scene", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "a.tif").touch()
    assert list_images([tmp_path / "scene"]) == [tmp_path / "scene"]
    assert list_images([tmp_path]) == [tmp_path / "a.tif", tmp_path / "scene"]
    assert list_images([tmp_path / "s*"]) == [tmp_path / "scene"]


def test_folders_below_are_looked_into_when_asked_but_never_results_or_the_inside_of_images(tmp_path: Path) -> None:
    for name in ("a.tif", "x/b.tif", "x/y/c.svs", ".hidden/d.tif", "out/a/mask.tif", "out/a/run.json", "out/b/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "out" / "b" / "plan.json").touch()
    zarr.save_array(tmp_path / "x" / "z.zarr" / "0.tif", np.zeros((8, 8), np.uint8))
    assert [str(p.relative_to(tmp_path)) for p in list_images([tmp_path])] == ["a.tif"]
    below = [str(p.relative_to(tmp_path)) for p in list_images([tmp_path], recursive=True)]
    assert below == ["a.tif", "x/b.tif", "x/z.zarr", "x/y/c.svs"]
    assert [p.name for p in list_images([tmp_path / "**" / "*.tif"])] == ["a.tif", "b.tif", "0.tif"]


def test_a_list_names_images_a_line_each_and_one_that_is_missing_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lists").mkdir()
    here, beside = write_png(tmp_path / "a.png", 20, 30), write_png(tmp_path / "lists" / "b \u2028ä.png", 20, 30)
    listing = tmp_path / "lists" / "all.txt"
    listing.write_text("\ufeff# my images\n\na.png\r\n  b \u2028ä.png  \nnone.png\na.png\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    images = list_images([f"@{listing}"])
    assert [p.resolve() for p in images] == [here, beside, tmp_path / "lists" / "none.png"]
    *done, missing = segment_all(images, model(), tmp_path / "out", PLAIN)
    assert all(isinstance(result, Bundle) for result in done)
    assert isinstance(missing, Failure)
    assert "none.png: no such file" in missing.reason


def test_images_are_listed_once_in_the_order_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.tif", "b.tif", "c.png", "odd[1].tif", "plain"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert [str(p) for p in list_images(["c.png", "*.tif", "a.tif", "plain"])] == [
        "c.png", "a.tif", "b.tif", "odd[1].tif", "plain",
    ]  # fmt: skip
    assert [str(p) for p in list_images(["odd[1].tif"])] == ["odd[1].tif"]
    assert list_images([tmp_path / "?.tif"]) == [tmp_path / "a.tif", tmp_path / "b.tif"]


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ("none.tif", "there is no file or folder none.tif"),
        ("*.jp2", r"no file matches '\*.jp2'"),
        ("empty", "the folder empty holds no image; give a folder of slides or GeoTIFFs; --recursive also looks"),
        ("@none.txt", "cannot read the list none.txt: No such file or directory; write one path a line"),
        ("@notes.txt", "the list notes.txt names no image; write one path a line"),
        ("@a.tif", "cannot read the list a.tif: it is no UTF-8 text; write one path a line"),
    ],
)
def test_what_names_no_image_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, reason: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("# nothing\n\n", encoding="utf-8")
    (tmp_path / "a.tif").write_bytes(b"II*\0\xff\xfe\xfd")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=reason):
        list_images([named])


def test_hidden_files_are_never_taken_for_images() -> None:
    assert is_image_name(Path("a.ndpi"))
    assert not is_image_name(Path(".a.ndpi"))
    assert not is_image_name(Path("a.ndpi.part"))


def test_a_broken_image_says_the_same_when_asked_alone(tmp_path: Path, mixed: Path) -> None:
    with pytest.raises(ImageError, match=r"d empty\.tif: the file is empty"):
        segment(mixed / "d empty.tif", model(), tmp_path / "out", PLAIN)
