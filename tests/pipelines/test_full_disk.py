"""A disk that is full, or may not be written: one plain line, nothing half-written under a final name; it goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from places import expected, model, read_mask, write_png

from pipelines import Bundle, Options, segment_all
from pipelines.errors import said_by_system
from pipelines.segmentation import Failure
from tiling.labels import Labels

if TYPE_CHECKING:
    from conftest import Veca

OPTIONS = Options(device="cpu", tissue=False, exports=("mask", "areas", "preview"))
SIDE = 500


def resize(folder: Path, kib: int, *how: str) -> None:
    options = ",".join([*how, f"size={kib}k"])
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of its own, without room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a full disk is a small tmpfs: that takes Linux and root to mount")
    try:
        resize(folder, 4)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"a tmpfs cannot be mounted here: {error.stderr!r}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def check_whole(folder: Path) -> set[str]:
    """Whatever has a final name is complete; returns the names."""
    names = {p.name for p in folder.iterdir() if not p.name.startswith(".")} if folder.exists() else set()
    if "labels.zarr" in names:
        labels = Labels.open(folder / "labels.zarr")
        assert np.array_equal(labels.read(labels.size.box), expected(SIDE, SIDE))
        assert len(labels.levels) == 1
    if "mask.tif" in names:
        assert np.array_equal(read_mask(folder / "mask.tif"), expected(SIDE, SIDE))
    if "areas.csv" in names:
        assert (folder / "areas.csv").read_text(encoding="utf-8").rstrip().splitlines()[-1].startswith("no data")
    if "run.json" in names:
        assert Bundle.open(folder).run.outputs == ("labels.zarr", "mask.tif", "areas.csv", "preview.png")
    return names


def test_a_disk_that_fills_up_in_mid_run_is_said_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.planner.BLOCKS", (128,))
    monkeypatch.setattr("pipelines.segmentation.CHUNK", 64)
    image, out = write_png(tmp_path / "a.png", SIDE, SIDE), small_disk
    reached, failures = set(), 0
    for kib in range(8, 1000, 16):
        resize(small_disk, kib, "remount")
        said: list[str] = []
        try:
            (result,) = segment_all([image], model(), out, OPTIONS, report=said.append)
        except OSError as error:  # not even the summary fits
            result = Failure(image, said_by_system(error))
        if isinstance(result, Bundle):
            break
        failures += 1
        assert "No space left on device" in result.reason or "is the disk full?" in result.reason, result.reason
        assert "\n" not in result.reason
        assert not any("Traceback" in line for line in said), said
        names = check_whole(out / "a")
        assert "run.json" not in names
        reached |= names
    assert isinstance(result, Bundle)
    assert failures >= 5
    assert {"labels.zarr.partial", "labels.zarr"} <= reached, "at the blocks and at the exports"
    assert result.run.resumed_blocks == 16
    assert check_whole(result.folder) == {"labels.zarr", "mask.tif", "areas.csv", "preview.png", "run.json"}


def test_a_full_disk_ends_the_command_with_one_line_and_status_1(
    veca: Veca, tiny_model: Path, tmp_path: Path, small_disk: Path
) -> None:
    image = write_png(tmp_path / "a.png", SIDE, SIDE)
    resize(small_disk, 20, "remount")
    said = veca("segment", image, "-m", tiny_model, "-o", small_disk, "--device", "cpu")
    assert said.status == 1
    assert "Traceback" not in said.err
    assert "No space left on device" in said.err


@pytest.mark.parametrize("out", ["file", "file/below", "read only"])
def test_a_folder_that_cannot_be_written_is_refused_in_one_line(
    veca: Veca, tiny_model: Path, tmp_path: Path, out: str, request: pytest.FixtureRequest
) -> None:
    image, folder = write_png(tmp_path / "a.png", 20, 30), tmp_path / out
    (tmp_path / "file").touch()
    if out == "read only":
        folder = request.getfixturevalue("small_disk")
        resize(folder, 100, "remount", "ro")
    said = veca("segment", image, "-m", tiny_model, "-o", folder, "--device", "cpu")
    assert said.status == 2
    assert f"cannot write into {folder}: " in said.line
    assert said.line.endswith("choose another --out")


def test_a_folder_of_one_image_that_cannot_be_made_fails_that_image(tmp_path: Path) -> None:
    images = [write_png(tmp_path / f"{name}.png", 20, 30) for name in "ab"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").touch()
    first, second = segment_all(images, model(), tmp_path / "out", replace(OPTIONS, exports=()))
    assert isinstance(first, Failure)
    assert first.reason == f"File exists {tmp_path / 'out' / 'a'}"
    assert isinstance(second, Bundle)
