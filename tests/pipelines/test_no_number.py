"""Gradients that are no numbers though the loss is one: nothing of them reaches the weights, or a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from labelled import content, recipe, write_data
from test_distill import described
from torch import Tensor, nn

from pipelines import train
from pipelines.distillation import Distillation
from pipelines.errors import RequestError
from pipelines.training import Run
from veca_core import load_model
from veca_core.weights import load_encoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("labelled"))


def spoil(parameter: nn.Parameter, from_step: int) -> None:
    """The gradient of a parameter is NaN from a step on, the first one being 1."""
    seen = 0

    def spoiled(gradient: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        return gradient * torch.nan if seen >= from_step else gradient

    parameter.register_hook(spoiled)


def all_finite(state: dict[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in state.values())


def started(data: Path, out: Path) -> Run:
    out.mkdir(exist_ok=True)
    run = Run.prepare(recipe(data), out, CPU, lambda _: None)
    run.settle(None)
    return run


@pytest.mark.parametrize("timed", [False, True])
def test_a_training_keeps_its_last_good_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timed: bool
) -> None:
    if timed:
        monkeypatch.setattr("pipelines.training.SAVE_EVERY", 0.0)
    run = started(data, tmp_path)
    spoil(run.learner.network.encoder.bank.tokens, from_step=5)
    with pytest.raises(RequestError, match="the gradients became nan at step 5: lower the rate") as caught:
        run.go_on()
    assert "\n" not in str(caught.value)
    assert all_finite(run.learner.network.state_dict())
    state = torch.load(tmp_path / "training.pt", weights_only=True)
    assert state["step"] == (4 if timed else 3)
    assert all_finite(state["network"])
    assert all_finite(state["average"])
    assert all_finite(load_model(tmp_path / "best").network.state_dict())


def test_what_the_message_advises_goes_on_from_the_best_model(data: Path, tmp_path: Path) -> None:
    run = started(data, tmp_path / "first")
    spoil(run.learner.network.encoder.bank.tokens, from_step=5)
    with pytest.raises(RequestError, match=r"lower the rate .* and give another --out; the model of step 3") as caught:
        run.go_on()
    best = str(caught.value).partition("--set network.pretrained=")[2].partition(" goes on")[0]
    slower = {**content()["schedule"], "rate": 1e-4}
    network = {**content()["network"], "pretrained": best}
    assert train(recipe(data, schedule=slower, network=network), tmp_path / "second", device="cpu").step


def test_a_timed_checkpoint_is_gone_on_from(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.training.SAVE_EVERY", 0.0)
    whole = train(recipe(data), tmp_path / "whole", device="cpu")
    run = started(data, tmp_path / "cut")
    learn = run.learner.learn

    def learn_or_stop(images: Tensor, target: Tensor, cores: int, step: int) -> float:
        if step == 4:
            raise KeyboardInterrupt
        return learn(images, target, cores, step)

    monkeypatch.setattr(run.learner, "learn", learn_or_stop)
    with pytest.raises(KeyboardInterrupt):
        run.go_on()
    assert torch.load(tmp_path / "cut" / "training.pt", weights_only=True)["step"] == 4
    again = train(recipe(data), tmp_path / "cut", device="cpu")
    assert (again.step, again.mean_iou) == (whole.step, pytest.approx(whole.mean_iou, abs=1e-3))


def test_a_distillation_keeps_its_last_good_encoder(data: Path, tmp_path: Path) -> None:
    run = Distillation(described(data), tmp_path, CPU, lambda _: None)
    spoil(run.student.bank.tokens, from_step=6)
    with pytest.raises(RequestError, match=r"the gradients became nan at step 6: lower the rate .* another --out; "):
        run.go_on()
    assert all_finite(run.student.state_dict())
    assert all_finite(load_encoder(tmp_path / "encoder")[0].state_dict())
    state = torch.load(tmp_path / "distillation.pt", weights_only=True)
    assert state["step"] == 3
    assert all_finite(state["student"])
