"""Training within a bound of memory: the same gradients, and a peak that was foretold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from labelled import content, recipe, write_data

from pipelines import train
from pipelines.errors import RequestError
from pipelines.scenes import IGNORE
from pipelines.steps import Learner
from pipelines.thrift import SCRATCH, Saved, Thrift, held_before, plan_thrift
from pipelines.training import Run

CPU = torch.device("cpu")
LITE = {
    "preset": "tiny", "stem": "tu-tf_efficientnet_lite0", "head": "unet",
    "overrides": {"dim": 48, "layers": 2, "heads": 3, "cores": 16},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("labelled"))


def learner(data: Path, out: Path, thrift: Thrift, **changed: Any) -> Learner:
    made = Run.prepare(recipe(data, **changed), out, CPU, lambda _: None)
    made.learner.settle(thrift)
    return made.learner


def test_blocks_that_are_computed_twice_give_the_same_weights_and_running_means(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.steps.fast_precision", lambda device: torch.float32)  # noqa: ARG005
    images, target = torch.randint(0, 256, (2, 3, 64, 64)).float(), torch.randint(0, 3, (2, 64, 64))
    plain, again = (learner(data, tmp_path / str(twice), Thrift(1, twice), network=LITE) for twice in (False, True))
    for step in range(2):
        assert plain.learn(images, target, 16, step) == pytest.approx(again.learn(images, target, 16, step), abs=1e-5)
    for name, value in plain.network.state_dict().items():
        torch.testing.assert_close(again.network.state_dict()[name], value, msg=name)


def test_parts_of_a_batch_count_by_the_pixels_that_are_known_of_them(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.steps.fast_precision", lambda device: torch.float32)  # noqa: ARG005
    images, target = torch.randint(0, 256, (4, 3, 48, 48)).float(), torch.randint(0, 3, (4, 48, 48))
    target[:2, 12:] = IGNORE  # a quarter is known of one half, and all of the other
    apart = {"overrides": {**LITE["overrides"], "rope_shift": 0.0, "rope_rescale": 1.0}, "stem": "patch"}  # type: ignore[dict-item]
    one = learner(data, tmp_path / "a", Thrift(parts=2), network={**LITE, **apart})
    loss = one.learn(images, target, 16, 0)
    found = [p.grad.clone() for p in one.network.parameters() if p.grad is not None]
    other = learner(data, tmp_path / "b", Thrift(), network={**LITE, **apart})
    other.network.train()
    halves = [other.loss_of(images[i : i + 2], target[i : i + 2], 16) for i in (0, 2)]
    mean = 0.2 * halves[0] + 0.8 * halves[1]
    mean.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(mean.item(), abs=1e-5)
    torch.nn.utils.clip_grad_norm_(other.network.parameters(), 1.0)
    expected = [p.grad for p in other.network.parameters() if p.grad is not None]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3)


def test_measuring_what_is_saved_changes_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.steps.fast_precision", lambda device: torch.float32)  # noqa: ARG005
    made = learner(data, tmp_path, Thrift(), network=LITE)
    before = {name: value.clone() for name, value in made.network.state_dict().items()}
    one, two = (made.saved(torch.zeros(1, 3, side, side)) for side in (64, 128))
    assert all(torch.equal(value, before[name]) for name, value in made.network.state_dict().items())
    assert all(p.grad is None for p in made.network.parameters())
    assert two.inside == pytest.approx(4 * one.inside, rel=0.1), "four times the pixels"
    assert two.total(again=True) < 0.8 * two.total(again=False)


def test_what_changes_no_result_comes_first() -> None:
    saved = Saved(outside=10, inside=80, inputs=5, deepest=20, largest=0)

    def ways(memory: int) -> tuple[int, bool]:
        found = plan_thrift(saved, 100, 4, memory, held=700)
        assert found.predicted is not None
        assert found.predicted <= memory
        return found.parts, found.again

    assert ways(1360) == (1, False)
    assert ways(1359) == ways(1140) == (1, True)
    assert ways(1139) == ways(1070) == (2, True)
    assert ways(1069) == ways(1035) == (4, True)
    with pytest.raises(RequestError, match=r"a crop at a time, and --memory is 0.00 GiB; give more"):
        ways(1034)


def test_a_gpus_bound_counts_the_gpus_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.thrift.resident", lambda: 1000)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: 10 + device.index)
    assert held_before(CPU) == 1000 + SCRATCH
    assert held_before(torch.device("cuda:1")) == 11 + SCRATCH


def test_the_peak_stays_within_the_bound(data: Path, tmp_path: Path) -> None:
    schedule = {**content()["schedule"], "steps": 2, "validate_every": 2, "batch": 4, "crop": 224}
    recipe(data, network=LITE, schedule=schedule)
    program = Path(__file__).with_name("frugal.py")
    command = [sys.executable, str(program), str(data / "recipe.yaml"), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["peak"] <= found["predicted"] <= found["bound"] < found["whole"]
    assert found["peak"] > 0.75 * found["predicted"]


def test_a_bound_that_is_too_tight_is_said(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"GiB at least, a crop at a time, and --memory is 0.10 GiB; give more"):
        train(recipe(data), tmp_path, device="cpu", memory=100 * 2**20)
