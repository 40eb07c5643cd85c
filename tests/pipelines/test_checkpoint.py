"""Checkpoints and logs on a disk that fills up: one plain line, and what was there before stays."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from labelled import content, recipe, write_data
from test_full_disk import resize, small_disk  # noqa: F401 - a fixture

from pipelines.checkpoint import read_checkpoint, write_checkpoint, write_row
from pipelines.errors import RequestError
from veca_core import load_model

if TYPE_CHECKING:
    from conftest import Veca

CPU = torch.device("cpu")


def test_a_row_takes_the_place_of_those_from_its_step_on(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    for row in ((2, "a"), (4, "b"), (6, "c"), (4, "d")):
        write_row(log, ("step", "what"), row)
    with log.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["step", "what"], ["2", "a"], ["4", "d"]]


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(small_disk: Path) -> None:  # noqa: F811
    path = small_disk / "training.pt"
    resize(small_disk, 400, "remount")
    write_checkpoint(path, {"recipe": "r", "values": torch.arange(10)})
    for count in (200_000, 3_000_000):
        with pytest.raises(OSError, match="No space left on device"):
            write_checkpoint(path, {"recipe": "r", "values": torch.zeros(count)})
        assert [p.name for p in small_disk.iterdir()] == ["training.pt"]
        assert torch.equal(read_checkpoint(path, CPU, "r", "i")["values"], torch.arange(10))
    with pytest.raises(RequestError, match="holds a run of another recipe"):
        read_checkpoint(path, CPU, "s", "i")


def test_what_cannot_be_saved_is_not_taken_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a tensor without storage")

    monkeypatch.setattr("torch.save", fail)
    with pytest.raises(RuntimeError, match="a tensor without storage"):
        write_checkpoint(tmp_path / "training.pt", {})
    assert not list(tmp_path.iterdir())


def test_a_training_whose_disk_fills_up_says_so_and_goes_on_when_there_is_room(
    veca: Veca,
    tmp_path: Path,
    small_disk: Path,  # noqa: F811
) -> None:
    data = write_data(tmp_path / "data")
    recipe(data, schedule={**content()["schedule"], "steps": 4, "validate_every": 2})
    command = ("train", data / "recipe.yaml", "--out", small_disk / "run", "--device", "cpu")
    seen = set()
    for kib in (150, 400, 700, 900, 1200):
        resize(small_disk, kib, "remount")
        said = veca(*command)
        assert said.status == 1, said.err
        assert "No space left on device" in said.err, said.err
        assert "Traceback" not in said.err
        names = {p.name for p in (small_disk / "run").iterdir() if not p.name.startswith(".")}
        seen |= names
        if "best" in names and (small_disk / "run" / "best" / "model.json").exists():
            load_model(small_disk / "run" / "best")
        if "training.pt" in names:
            torch.load(small_disk / "run" / "training.pt", weights_only=True)
    resize(small_disk, 50_000, "remount")
    assert veca(*command).status == 0
    assert load_model(small_disk / "run" / "best").card.scores
