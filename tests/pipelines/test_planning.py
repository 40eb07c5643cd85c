"""What would be chosen for an image, asked without running it, is what is then run; time is measured, not guessed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from places import model, seeded_network, write_png, write_slide

from pipelines import Options, plan, segment
from pipelines.errors import RequestError
from pipelines.pace import measure_pace, measure_rate, parse_time
from pipelines.planner import Pace
from tiling import ImageError, View, open_image
from veca_core import load_model
from veca_core.memory import forward_operations
from veca_core.model import network_size

if TYPE_CHECKING:
    from conftest import Veca

CPU = torch.device("cpu")


def test_the_plan_that_is_told_is_the_one_that_is_run(tmp_path: Path) -> None:
    image = write_png(tmp_path / "a.png", 90, 150)
    options = Options(device="cpu", cores=16, memory=2**31, exports=())
    planned = plan(image, model(), options)
    run = segment(image, model(), tmp_path / "out", options).run
    ignored = {"predicted", "memory", "reason"}
    assert (
        run.plan.model_dump(exclude=ignored).items()
        <= {name: getattr(planned.chosen, name) for name in run.plan.model_dump()}.items()
    )
    (row,) = [row for row in planned.choices if row.chosen]
    assert row.plan == planned.chosen
    lines = str(planned).splitlines()
    assert "chunk" in lines[1]
    assert sum(line.strip().startswith("->") for line in lines) == 1
    assert lines[-1].startswith("plan: 16 cores, window 64 px")


def test_a_plan_is_made_for_an_array_too_and_not_from_what_lies_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = write_png(tmp_path / "a.png", 90, 150)
    segment(image, model(), tmp_path, Options(device="cpu", window=32, exports=()))
    assert plan(np.zeros((80, 70, 3), np.uint8), model()).chosen.window == 64
    assert plan("a.png", model(), Options(device="cpu")).chosen.window == 64


def test_what_cannot_be_planned_says_why(tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        plan(tmp_path / "none.png", model())
    with pytest.raises(RequestError, match="is not enough: the smallest plan"):
        plan(np.zeros((80, 70, 3), np.uint8), model(), Options(device="cpu", memory=2**20))


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5 min", 90), ("2h", 7200), (" 10MIN", 600)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "soon", "-1s", "1 day", "1e3", "min"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="write a number and a unit, like 90s, 10min or 2h"):
        parse_time(text)


def test_the_pace_is_measured_and_windows_without_data_or_tissue_do_not_count() -> None:
    network = seeded_network(model().card)
    full = measure_pace(network, View.open(open_image(np.zeros((500, 500, 3), np.uint8))), 64, CPU, False)
    assert full.share == 1
    assert 1e6 < full.rate < 1e15
    glass = np.full((1000, 1000, 3), 240, np.uint8)
    glass[:300, :300] = (200, 60, 160)
    part = measure_pace(network, View.open(open_image(glass)), 64, CPU, True)
    assert 0.05 < part.share < 0.4


def test_the_rate_is_the_operations_of_the_fastest_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 10.0, 14.0, 20.0, 22.0])  # the first pass is not timed
    monkeypatch.setattr("pipelines.pace.time", SimpleNamespace(perf_counter=lambda: next(moments)))
    network = seeded_network(model().card)
    expected = forward_operations(network_size(network), 64, 64, 64) / 2
    assert measure_rate(network, 64, CPU) == expected


def test_a_bound_on_time_is_kept_or_refused_and_recorded(veca: Veca, tiny_model: Path, tmp_path: Path) -> None:
    image = write_slide(tmp_path / "a.ome.tif", 200, 300)
    out = ["--out", tmp_path / "out", "--device", "cpu"]
    said = veca("segment", image, "-m", tiny_model, *out, "--time", "10min", "--json")
    assert said.status == 0, said.err
    (made,) = json.loads(said.out)
    assert 0 <= made["run"]["plan"]["seconds"] < 600
    assert " s (everything fits)" in said.err
    said = veca("plan", image, "-m", tiny_model, "--device", "cpu", "--time", "0.00001s")
    assert (said.status, said.out) == (2, "")
    assert "s are not enough: the quickest plan (" in said.line
    assert "allow --time" in said.line
    said = veca("segment", image, "-m", tiny_model, *out, "--time", "soon")
    assert said.status == 2
    assert "cannot read 'soon' as a time" in said.line
    said = veca("segment", image, "-m", tiny_model, *out, "--time", "5s", "--dask", "local:2")
    assert said.status == 2
    assert said.line.endswith("a bound on time is for one machine; leave out --time or --dask")


def test_another_bound_on_time_is_another_request(tiny_model: Path, tmp_path: Path) -> None:
    image, loaded = write_png(tmp_path / "a.png", 90, 150), load_model(tiny_model)
    options = Options(device="cpu", exports=())
    first = segment(image, loaded, tmp_path / "out", replace(options, time=1000.0)).run
    assert first.plan.seconds is not None
    again = segment(image, loaded, tmp_path / "out", options).run
    assert again.plan.seconds is None
    assert again.request != first.request


def test_a_run_that_asks_how_sure_it_is_takes_twice_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.job.measure_pace", lambda *_: Pace(1e6, share=0.5))
    image, options = write_png(tmp_path / "a.png", 90, 150), Options(device="cpu", time=1e6)
    plain = plan(image, model(), options).chosen.seconds
    unsure = plan(image, model(), replace(options, exports=("uncertainty",))).chosen.seconds
    assert plain is not None
    assert unsure == 2 * plain


def test_rows_count_what_the_reader_needs_and_what_is_exported(veca: Veca, tiny_model: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9000, 9000, 3), np.uint8)).save(tmp_path / "a.png", compress_level=1)

    def rows(*options: str) -> list[dict[str, Any]]:
        said = veca("plan", tmp_path / "a.png", "-m", tiny_model, "--device", "cpu", "--json", *options)
        assert said.status == 0, said.err
        return json.loads(said.out)  # type: ignore[no-any-return]

    plain, layers = rows(), rows("--exports", "probability,uncertainty", "--overlap", "3")
    assert all(row["predicted"] > 9000 * 9000 * 3 for row in plain), "the picture is decoded whole"
    assert min(row["predicted"] for row in layers) > min(row["predicted"] for row in plain)
    assert {row["overlap"] for row in layers} == {3}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--memory", "6 gigs"], "cannot read '6 gigs' as an amount of memory; write a number and a unit, like 6GiB"),
        (["--window", "8"], "a window of 8 px is smaller than the model's patch of 16 px"),
        (["--cores", "72"], "cannot run with 72 cores; ask for a multiple of 8 from 8 to 64"),
        (["--time", "1 week"], "cannot read '1 week' as a time; write a number and a unit, like 90s, 10min or 2h"),
        (["--memory", "1MiB"], "1 MiB is not enough: the smallest plan"),
    ],
)
def test_a_plan_that_cannot_be_is_one_line(
    veca: Veca, tiny_model: Path, tmp_path: Path, options: list[str], reason: str
) -> None:
    said = veca("plan", write_png(tmp_path / "a.png", 70, 90), "-m", tiny_model, "--device", "cpu", *options)
    assert (said.status, said.out) == (2, "")
    assert reason in said.line
