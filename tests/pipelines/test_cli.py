"""The command line: what it makes, what it prints, and one plain line with the right exit status when it cannot."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from clusters import program
from PIL import Image
from places import read_mask, write_png, write_raster, write_slide

if TYPE_CHECKING:
    from conftest import Veca

VECA = Path(sys.executable).with_name("veca.exe" if sys.platform == "win32" else "veca")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_png(tmp_path / "scene.png", 70, 90)


def test_the_installed_command_segments_a_folder_and_reports_what_failed(
    tmp_path: Path, image: Path, tiny_model: Path
) -> None:
    (image.parent / "broken.tif").write_bytes(b"II*\0nothing")
    command = [
        VECA,
        "segment",
        image.parent,
        "--model",
        tiny_model,
        "--out",
        tmp_path / "out",
        "--json",
        "--device",
        "cpu",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    failed, made = json.loads(done.stdout)
    assert failed["image"].endswith("broken.tif")
    assert made["run"]["model"]["name"] == "tiny-model"
    mask = read_mask(Path(made["folder"]) / "mask.tif")
    assert mask.shape == (70, 90)
    assert np.isin(mask, [0, 11, 22, 33]).all()
    assert done.stderr.strip().endswith("1 of 2 images failed; " + str(tmp_path / "out" / "summary.csv") + " says why")


def test_the_installed_command_refuses_in_one_line(tmp_path: Path) -> None:
    command = [VECA, "segment", "none.tif", "--model", "nuclei", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "there is no file or folder none.tif" in done.stderr


def test_a_finished_batch_ends_with_status_0(veca: Veca, image: Path, tiny_model: Path, tmp_path: Path) -> None:
    said = veca("segment", image, "-m", tiny_model, "-o", tmp_path / "out", "--device", "cpu", "--cores", "8")
    assert said.status == 0
    assert said.out == ""
    assert (
        f"{tmp_path / 'out' / 'scene'}: labels.zarr, mask.tif, regions.geojson, regions.csv, areas.csv, preview.png"
        in said.err
    )
    assert "plan: 8 cores, window 64 px" in said.err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--cores", "many"], "cannot read 'many' as a number of cores; write auto, or a number like 32"),
        (["--cores", "-8"], "cannot read '-8' as a number of cores"),
        (["--cores", "7"], "cannot run with 7 cores; ask for a multiple of 8 from 8 to 64"),
        (["--memory", "lots"], "cannot read 'lots' as an amount of memory; write a number and a unit, like 6GiB"),
        (["--memory", "0"], "cannot read '0' as an amount of memory"),
        (["--memory", "-1GiB"], "cannot read '-1GiB' as an amount of memory"),
        (["--spacing", "big"], "cannot read 'big' as a pixel size; write a number and a unit, like 0.25um or 0.3m"),
        (["--exports", "mask,shapes"], "there is no export 'shapes'; the exports are mask, areas, preview"),
        (["--device", "gpu"], "there is no device 'gpu'; write auto, cpu, cuda or cuda:1"),
        (["--device", "cuda:77"], "cuda:77 was asked for, but torch sees"),
        (["--window", "8"], "a window of 8 px is smaller than the model's patch of 16 px"),
        (["--window", "64", "--overlap", "40"], "the overlap must be 0 to half the window of 64 px, got 40 px"),
    ],
)
def test_a_bad_option_is_one_line(
    veca: Veca, image: Path, tiny_model: Path, tmp_path: Path, options: list[str], reason: str
) -> None:
    said = veca("segment", image, "--model", tiny_model, "--out", tmp_path / "out", *options)
    assert said.status == 2
    assert reason in said.line
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--memory", "1MiB"], "1 MiB is not enough: the smallest plan"),
        (["--spacing", "0.5um", "--model", "{um}"], "expects 500 um/px"),
    ],
)
def test_what_an_image_cannot_be_run_with_is_its_failure(
    veca: Veca, image: Path, tiny_model: Path, tmp_path: Path, options: list[str], reason: str
) -> None:
    if "{um}" in options:
        content = json.loads((tiny_model / "model.json").read_text(encoding="utf-8"))
        (tmp_path / "um").mkdir()
        (tmp_path / "um" / "model.safetensors").write_bytes((tiny_model / "model.safetensors").read_bytes())
        content["spacing"] = {"value": 500, "unit": "um"}
        (tmp_path / "um" / "model.json").write_text(json.dumps(content), encoding="utf-8")
        options, reason = [*options[:-1], str(tmp_path / "um")], "0.5 um/px"
    said = veca("segment", image, "--model", tiny_model, "--out", tmp_path / "out", *options)
    assert said.status == 1
    assert "Traceback" not in said.err
    (failed,) = [line for line in said.err.splitlines() if "failed: " in line]
    assert reason in failed
    assert said.err.strip().endswith("says why")


@pytest.mark.parametrize("option", [["--window", "0"], ["--overlap", "-1"], ["--threads", "0"], ["--window", "x"]])
def test_a_number_out_of_range_is_refused_by_its_option(
    veca: Veca, image: Path, tiny_model: Path, tmp_path: Path, option: list[str]
) -> None:
    said = veca("segment", image, "--model", tiny_model, "--out", tmp_path / "out", *option)
    assert said.status == 2
    assert "Traceback" not in said.err
    assert f"Invalid value for '{option[0]}'" in said.err


def test_images_that_do_not_fit_or_cannot_be_read_fail_with_a_reason(
    veca: Veca, tiny_model: Path, tmp_path: Path
) -> None:
    two = write_raster(tmp_path / "two bands.tif", 70, 80)
    (tmp_path / "torn.png").write_bytes(write_png(tmp_path / "whole.png", 70, 80).read_bytes()[:80])
    said = veca("segment", two, tmp_path / "torn.png", "--model", tiny_model, "--out", tmp_path / "out")
    assert said.status == 1
    assert "Traceback" not in said.err
    reasons = [line for line in said.err.splitlines() if "failed: " in line]
    assert "has 2 bands" in reasons[0]
    assert "torn.png" in reasons[1]
    assert said.err.count("\n") < 12


def test_paths_and_models_that_are_not_there_are_one_line(
    veca: Veca, image: Path, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "file").touch()
    out = ["--out", tmp_path / "out"]
    for arguments, status, reason in [
        (["segment", "none.tif", "-m", tiny_model, *out], 2, "there is no file or folder none.tif"),
        (["segment", tmp_path / "nothing", "-m", tiny_model, *out], 2, "holds no image"),
        (["segment", tmp_path / "*.xyz", "-m", tiny_model, *out], 2, "no file matches"),
        (["segment", image, "-m", "no-model", *out], 2, "there is no model 'no-model': give a folder"),
        (["segment", image, "-m", tmp_path / "nothing", *out], 2, "there is no model"),
        (["segment", image, "-m", tiny_model, "--out", tmp_path / "file"], 2, "cannot write into"),
        (["segment", image, "-m", tiny_model, "--out", tmp_path / "file" / "deeper"], 2, "cannot write into"),
        (["info", "none.tif"], 2, "none.tif: no such file"),
        (["info", tmp_path / "file"], 1, "the file is empty"),
        (["models", "no-model"], 2, "there is no model 'no-model'"),
        (["plan", "none.tif", "-m", tiny_model], 2, "no such file"),
        (["plan", image, "-m", tiny_model, "--cores", "7"], 2, "cannot run with 7 cores"),
        (["train", tmp_path / "none.yaml", *out], 2, "none.yaml cannot be read: No such file or directory"),
        (["train", tmp_path / "nothing", *out], 2, "has no images/ and masks/"),
        (["train", tmp_path / "file", *out], 2, "is no recipe"),
        (["evaluate", "no-model", tmp_path / "none.yaml"], 2, "none.yaml cannot be read"),
        (["view", tmp_path / "none"], 2, "there is no folder"),
    ]:
        said = veca(*arguments)
        assert reason in said.line, arguments
        assert said.status == status, arguments


def test_a_missing_argument_tells_the_usage(veca: Veca) -> None:
    said = veca("segment")
    assert said.status == 2
    assert "Usage: " in said.err
    assert "Missing argument" in said.err


@pytest.mark.parametrize(("options", "what"), [((), "goes on from here"), (("--overwrite",), "starts anew")])
def test_an_interrupted_command_says_whether_it_goes_on(
    veca: Veca, image: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...], what: str,
) -> None:  # fmt: skip
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.segmentation.segment", stopped)
    said = veca("segment", image, "-m", tiny_model, "-o", tmp_path / "out", *options)
    assert said.status == 130
    assert said.err.strip().splitlines()[-1].endswith(f"veca: stopped; the same command {what}")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal that one program sends another")
def test_ctrl_c_stops_a_run_cleanly_and_the_same_command_finishes_it(tmp_path: Path, tiny_model: Path) -> None:
    image, out = write_png(tmp_path / "scene.png", 2100, 2100), tmp_path / "out"
    command = [VECA, "segment", image, "-m", tiny_model, "-o", out, "--device", "cpu", "--exports", "mask"]
    log = tmp_path / "log.txt"
    with program(*command, "--threads", "1", folder=tmp_path, log=log) as run:
        while not (out / "scene" / "plan.json").exists():
            assert run.poll() is None, log.read_text(encoding="utf-8")
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        status, said = run.wait(60), log.read_text(encoding="utf-8")
    assert status == 130, said
    assert said.strip().splitlines()[-1].endswith("veca: stopped; the same command goes on from here")
    assert "Traceback" not in said
    assert not (out / "scene" / "mask.tif").exists()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert {path.name for path in (out / "scene").iterdir()} == {"labels.zarr", "mask.tif", "run.json"}


def test_folders_within_folders_and_lists_of_files_are_segmented(
    veca: Veca, image: Path, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    deep = write_png(tmp_path / "in" / "deep" / "b.png", 20, 30)
    common = ("-m", tiny_model, "-o", tmp_path / "out", "--device", "cpu", "--exports", "mask")
    said = veca("segment", tmp_path / "in", *common)
    assert said.status == 2, "the folder itself has no image"
    assert veca("segment", tmp_path / "in", "--recursive", *common).status == 0
    assert read_mask(tmp_path / "out" / "b" / "mask.tif").shape == (20, 30)
    (tmp_path / "list.txt").write_text(f"{image}\n{deep}\n", encoding="utf-8")
    assert veca("segment", f"@{tmp_path / 'list.txt'}", *common).status == 0
    assert read_mask(tmp_path / "out" / "scene" / "mask.tif").shape == (70, 90)


def test_info_tells_what_an_image_is(veca: Veca, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "a.ome.tif", 200, 300, um=0.25)
    facts = json.loads(veca("info", slide, "--json").out)
    assert (facts["kind"], facts["size"], facts["spacing"]) == ("slide", [200, 300], "0.25 um/px")
    assert facts["levels"] == [[200, 300], [100, 150]]
    said = veca("info", write_raster(tmp_path / "b.tif", 70, 80))
    assert said.status == 0
    assert "70 x 80 px, 2 bands" in said.out
    assert "EPSG:32633" in said.out


def test_models_lists_what_is_shipped_and_shows_any_model(veca: Veca, tiny_model: Path) -> None:
    listed = json.loads(veca("models", "--json").out)
    assert all({"name", "classes", "megabytes"} <= entry.keys() for entry in listed)
    said = veca("models", tiny_model)
    assert "tiny-model" in said.out
    assert "cores: 8 to 64 in steps of 8" in said.out


def test_plan_shows_the_choices_and_marks_one(veca: Veca, image: Path, tiny_model: Path) -> None:
    said = veca("plan", image, "-m", tiny_model, "--device", "cpu")
    assert said.status == 0
    assert sum(line.strip().startswith("->") for line in said.out.splitlines()) == 1
    rows = json.loads(veca("plan", image, "-m", tiny_model, "--device", "cpu", "--json").out)
    (chosen,) = [row for row in rows if row["chosen"]]
    assert (chosen["cores"], chosen["window"]) == (64, 64)
    assert chosen["time"] == 1


def test_train_and_evaluate_run_from_the_command_line(veca: Veca, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for i in range(4):
        mask = (rng.random((64, 64)) > 0.5).astype(np.uint8)
        Image.fromarray(mask * 200).convert("RGB").save(tmp_path / "data" / "images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"{i}.png")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: small\nclasses: [{value: 0, name: a, color: '#000000'}, {value: 1, name: b, color: '#FFFFFF'}]\n"
        "data: {images: data/images, masks: data/masks}\nwindow: 64\n"
        "network: {preset: tiny, stem: patch, head: linear, overrides: {dim: 48, layers: 2, heads: 3, cores: 16}}\n"
        "schedule: {steps: 2, batch: 1, crop: 32, warmup: 1, validate_every: 2}\n",
        encoding="utf-8",
    )
    said = veca("train", recipe, "--out", tmp_path / "run", "--json")
    assert said.status == 0, said.err
    model = Path(json.loads(said.out)["model"])
    said = veca("evaluate", model, tmp_path / "data", "--everything", "--out", tmp_path / "scores")
    assert said.status == 0, said.err
    assert veca("evaluate", model, recipe, "--record").status == 0
    small = [f"--set=network.{field}" for field in ("stem=patch", "head=linear", "overrides={dim: 48, heads: 3}")]
    small += [f"--set=schedule.{field}" for field in ("steps=1", "batch=1", "crop=32")]
    done = veca("train", tmp_path / "data", "--out", tmp_path / "plain", *small, "--json")
    assert json.loads(done.out)["step"] == 1
    assert "schedule.stepz" in veca("train", tmp_path / "data", "--out", tmp_path, "--set", "schedule.stepz=1").line
    assert [line.split()[0] for line in said.out.splitlines()] == ["cores", "8", "16"]
    assert json.loads((model / "model.json").read_text(encoding="utf-8"))["scores"][1]["cores"] == 16
    assert (tmp_path / "scores" / "evaluation.png").is_file()
    assert veca("evaluate", model, recipe, "--cores", "8,24").line.endswith("ask for a multiple of 8 from 8 to 16")
    assert "as a number of cores" in veca("evaluate", model, recipe, "--cores", "8,all").line


def test_overwriting_a_training_removes_what_a_training_made_and_nothing_else(veca: Veca, tmp_path: Path) -> None:
    for name in ("thesis.txt", "log.csv", "training.pt", "curves.png"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    (tmp_path / "best").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "recipe.yaml").write_text(
        "name: a\nclasses: [{value: 0, name: a, color: '#000000'}, {value: 1, name: b, color: '#FFFFFF'}]\n"
        "data: {images: none, masks: none}\n", encoding="utf-8",
    )  # fmt: skip
    said = veca("train", tmp_path / "recipe.yaml", "--out", tmp_path, "--overwrite")
    assert said.status == 2
    assert "there is no folder" in said.line
    # Nothing goes before the data is known to be good.
    assert {"thesis.txt", "photos", "recipe.yaml", "best", "log.csv", "training.pt"} <= {
        p.name for p in tmp_path.iterdir()
    }
