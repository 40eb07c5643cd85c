"""Processes that train together do what one alone does with the same batches."""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from labelled import content, recipe, write_data
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from pipelines import train
from pipelines.errors import RequestError
from pipelines.team import ALONE, Team, joined, share_batch_norms
from veca_core import load_model

PROGRAM = Path(__file__).with_name("teamwork.py")
ROOT = Path(__file__).parents[2]
NETWORK = {
    "preset": "tiny", "stem": "patch", "head": "unet",
    "overrides": {"dim": 48, "layers": 2, "heads": 3, "cores": 16},
}  # fmt: skip
SCHEDULE = {**content()["schedule"], "batch": 4, "crop": 64, "steps": 4, "validate_every": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("labelled"))


def torchrun(count: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs `veca` in so many processes, as docs/training.md says, but for the number type."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", PROGRAM]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [str(part) for part in (*command, *arguments)], capture_output=True, text=True, env=environment, check=False
    )


def test_two_processes_give_what_one_gives_with_the_same_batches(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.steps.fast_precision", lambda device: torch.float32)  # noqa: ARG005
    one = train(recipe(data, network=NETWORK, schedule=SCHEDULE), tmp_path / "one", device="cpu")
    shared = ("train", data / "recipe.yaml", "--out", tmp_path / "two", "--device", "cpu", "--memory", "100GiB")
    said = torchrun(2, *shared)
    assert said.returncode == 0, said.stderr
    assert said.stderr.count("best model:") == 1, "the first process alone reports"
    states = [torch.load(tmp_path / run / "training.pt", weights_only=True) for run in ("one", "two")]
    assert states[0]["best"] == pytest.approx(states[1]["best"], abs=1e-3)
    rows = [(tmp_path / run / "log.csv").read_text(encoding="utf-8").splitlines()[1:] for run in ("one", "two")]
    for row, other in zip(*rows, strict=True):
        assert float(row.split(",")[1]) == pytest.approx(float(other.split(",")[1]), rel=1e-4), "the loss"
    one_has, two_have = (
        torch.cat([value.float().flatten() for value in state["average"].values()]) for state in states
    )
    assert (two_have - one_has).norm() < 1e-3 * one_has.norm()
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        mine, theirs = (load_model(f).network(pixels) for f in (one.folder, tmp_path / "two" / "best"))
    torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize(
    "network",
    [
        {**NETWORK, "overrides": {**NETWORK["overrides"], "layers": 1}},  # type: ignore[dict-item]
        {"rival": "smp:PSPNet:resnet18"},
    ],
)
def test_networks_with_weights_that_nothing_asks_for_learn_in_two_processes(
    data: Path, tmp_path: Path, network: dict[str, Any]
) -> None:
    recipe(data, network=network, schedule=SCHEDULE)
    said = torchrun(2, "train", data / "recipe.yaml", "--out", tmp_path / "two", "--device", "cpu")
    assert said.returncode == 0, said.stderr
    assert "best model:" in said.stderr


def test_shared_batch_normalisation_is_torchs_where_one_process_has_all(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), BatchNormAct2d(4))
    shared = copy.deepcopy(plain)
    share_batch_norms(shared)
    images = torch.randn(4, 3, 12, 12)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        for network in (plain, shared):
            for _ in range(2):
                network(images).square().sum().backward()
    finally:
        dist.destroy_process_group()
    for (name, one), other in zip(plain.named_parameters(), shared.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(other.grad, one.grad, atol=1e-3, rtol=1e-4, msg=name)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], value, msg=name)
    torch.testing.assert_close(shared.eval()(images), plain.eval()(images))


def test_a_batch_that_cannot_be_shared_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="3 processes cannot share a batch of 2 crops evenly; make schedule"):
        train(recipe(data), tmp_path, device="cpu", team=_Absent(0, 3))


def test_half_an_environment_is_refused() -> None:
    with joined({}) as team:
        assert team is ALONE
    with joined({"WORLD_SIZE": "1"}) as team:
        assert team.leads
    with pytest.raises(RequestError, match="not what else torchrun sets"), joined({"WORLD_SIZE": "2"}):
        raise AssertionError


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_shares_are_all_there_is_and_come_back_in_order(count: int) -> None:
    shares = [list(Team(rank, 3).share(range(count))) for rank in range(3)]
    assert sorted(itertools.chain(*shares)) == list(range(count))
    assert ALONE.collected(list(range(count))) == list(range(count))


class _Absent(Team):
    """One of a team whose others are not there."""

    def wait(self) -> None:
        pass
