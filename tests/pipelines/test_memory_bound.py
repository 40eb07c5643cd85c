"""The memory bound holds for the whole process, whatever the image's size, and counts what its reader needs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from places import model, write_png

from pipelines import Options, segment
from pipelines.device import resident
from pipelines.errors import RequestError
from pipelines.job import Job
from tiling import open_image

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "pipeline.py"
OPTIONS = Options(device="cpu", tissue=False, exports=())


def test_the_peak_stays_within_the_bound_and_does_not_grow_with_the_image(tmp_path: Path) -> None:
    sides = ("10000", "20000", "40000")
    command = [sys.executable, str(PROGRAM), "--side", *sides, "--sparse", "--memory", "2", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert [run["side"] for run in runs] == [10_000, 20_000, 40_000]
    peaks = [run["peak_memory"] for run in runs]
    assert max(peaks) <= 2 * 2**30
    assert max(peaks) <= 1.1 * min(peaks)
    assert all(run["windows_run"] < 400 for run in runs), "windows that the file leaves out are not run"


def test_the_peak_stays_within_the_bound_where_much_is_carried_from_one_row_of_blocks_to_the_next(
    tmp_path: Path,
) -> None:
    size = ("--side", "16384", "--height", "2560")
    command = [sys.executable, str(PROGRAM), *size, "--memory", "1.45", "--folder", str(tmp_path)]
    run = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert run["windows_run"] > run["windows"], "what may be carried is used up"
    assert run["peak_memory"] <= run["plan"]["memory"]


@pytest.mark.skipif(sys.platform != "linux", reason="resident sizes are counted as Linux does")
@pytest.mark.parametrize(("name", "window"), [("nuclei", 256), ("nuclei", 1024), ("aerial-landcover", 512)])
def test_what_is_expected_of_a_run_is_what_it_takes(tmp_path: Path, name: str, window: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (375, 375, 3), np.uint8)
    pixels = noise.repeat(8, axis=0).repeat(8, axis=1)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(256, 256), compression="jpeg")
    options = ("--window", str(window), "--threads", "1", "--device", "cpu", "--exports", "mask,preview")
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "segment", str(tmp_path / "a.tif")]
    subprocess.run([*command, "--model", name, "--out", str(tmp_path), *options], capture_output=True, check=True)
    run = json.loads((tmp_path / "a" / "run.json").read_text())
    expected, peak = run["plan"]["predicted"], run["peak_memory"]
    assert 0.95 * peak <= expected <= 1.15 * peak, f"expected {expected >> 20} MiB, took {peak >> 20} MiB"


def test_a_picture_that_is_decoded_whole_counts_in_the_plan(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.fromarray(np.zeros((9000, 9000, 3), np.uint8)).save(picture, compress_level=1)
    generous = replace(OPTIONS, memory=resident() + 4 * 2**30)
    small = Job.prepare(open_image(write_png(tmp_path / "b.png", 900, 900)), model(), tmp_path / "out", generous)
    large = Job.prepare(open_image(picture), model(), tmp_path / "out", generous)
    assert large.plan.predicted - small.plan.predicted > 9000 * 9000 * 3
    assert large.plan.memory == generous.memory
    tight = replace(OPTIONS, memory=resident() + 300 * 2**20)
    with pytest.raises(RequestError, match=r"a\.png has no small tiles: reading it takes .* vips tiffsave") as caught:
        segment(picture, model(), tmp_path / "out", tight)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_tiff_of_one_strip_counts_and_one_of_tiles_does_not(tmp_path: Path) -> None:
    pixels = np.zeros((9000, 9000, 3), np.uint8)
    tight = replace(OPTIONS, memory=resident() + 300 * 2**20)
    for name, layout in {"strip": {"rowsperstrip": 9000}, "tiles": {"tile": (256, 256)}}.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb", compression="zlib", **layout)  # type: ignore[arg-type]
    assert Job.prepare(open_image(tmp_path / "tiles.tif"), model(), tmp_path / "out", tight).plan.predicted <= (
        tight.memory or 0
    )
    with pytest.raises(RequestError, match=r"strip\.tif has no small tiles"):
        Job.prepare(open_image(tmp_path / "strip.tif"), model(), tmp_path / "out", tight)


def test_an_array_in_memory_is_there_already(tmp_path: Path) -> None:
    tight = replace(OPTIONS, memory=resident() + 300 * 2**20)
    Job.prepare(open_image(np.zeros((9000, 9000, 3), np.uint8)), model(), tmp_path / "out", tight)
