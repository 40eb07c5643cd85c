"""A training, small enough to run in a second: what it leaves, how it goes on, and what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelled import CLASSES, content, recipe, write_data
from PIL import Image
from scipy import ndimage

from pipelines import evaluate, segment, train
from pipelines.candidate import architecture, new_card
from pipelines.checkpoint import alone_in
from pipelines.config import DataRecipe, ScheduleRecipe
from pipelines.errors import RequestError
from pipelines.evaluation import record_scores, write_evaluation
from pipelines.job import Options
from pipelines.optimiser import learning_rate, parameter_groups
from pipelines.scenes import Scene, class_lookup, find_scenes, split_scenes
from pipelines.survey import measure_bands
from pipelines.training import Run, remove_run
from pipelines.truth import MaskTruth
from pipelines.validation import validate
from tiling.readers.array import ArraySource
from veca_core import Model, ModelError, build, load_card, load_model, load_official_encoder
from veca_core.card import Bands
from veca_core.weights import write_card

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(recipe(data), out, device="cpu")
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of the network and of its running mean, at the last checkpoint."""
    state = torch.load(run / "training.pt", weights_only=True)
    return {f"{part}.{name}": value for part in ("network", "average") for name, value in state[part].items()}


def width(picture: Path) -> int:
    with Image.open(picture) as image:
        return int(image.size[0])


def log(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_training_leaves_a_model_a_log_and_curves(trained: Path, data: Path) -> None:
    assert {p.name for p in trained.iterdir()} == {
        "best", "log.csv", "curves.png", "samples.png", "summary.html", "training.pt",
    }  # fmt: skip
    rows = log(trained)
    assert [row["step"] for row in rows] == ["3", "6"]
    assert all(float(row["loss"]) > 0 and 0 <= float(row["mean_iou"]) <= 1 for row in rows)
    assert all(int(row["cores"]) in (8, 16) for row in rows)
    assert width(trained / "curves.png") > 500
    card = load_card(trained / "best")
    assert card.name == "tiny"
    assert [c.value for c in card.classes] == [0, 4, 9]
    assert card.bands.names == ("red", "green", "blue")
    pixels = np.concatenate(
        [np.array(Image.open(p)).reshape(-1, 3) for p in sorted((data / "images").glob("case[01]*"))]
    )
    assert card.bands.mean == pytest.approx(pixels.mean(0), abs=4)
    assert card.bands.std == pytest.approx(pixels.std(0), rel=0.1)
    (score,) = card.scores
    assert (score.cores, score.mean_iou) == (16, max(float(row["mean_iou"]) for row in rows))


def test_the_model_segments(trained: Path, data: Path, tmp_path: Path) -> None:
    model = load_model(trained / "best")
    bundle = segment(data / "images" / "case0_0.png", model, tmp_path, Options(device="cpu", exports=("mask",)))
    assert np.isin(bundle.labels().levels[0][:], [0, 4, 9]).all()


def test_the_average_follows_the_network(trained: Path) -> None:
    state = weights(trained)
    name = "encoder.blocks.0.mlp.fc1.weight"
    assert not torch.equal(state[f"network.{name}"], state[f"average.module.{name}"])
    assert all(torch.isfinite(value).all() for value in state.values())


def stop_at(step: int) -> Callable[[str], None]:
    def report(line: str) -> None:
        # This line is told before the checkpoint is written: what is found there later is the milestone before.
        if line.startswith(f"step {step}:"):
            raise KeyboardInterrupt

    return report


def test_a_stopped_training_goes_on_to_the_same_weights(trained: Path, data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        train(recipe(data), tmp_path, device="cpu", report=stop_at(6))
    assert len(log(tmp_path)) == 2
    assert torch.load(tmp_path / "training.pt", weights_only=True)["step"] == 3
    train(recipe(data), tmp_path, device="cpu", report=said.append)
    assert said[0] == "going on after step 3 of 6"
    whole, resumed = weights(trained), weights(tmp_path)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=1e-5)
    best, again = (load_model(run / "best").network.state_dict() for run in (trained, tmp_path))
    for name, value in best.items():
        torch.testing.assert_close(again[name], value, atol=1e-6, rtol=1e-5)


def test_a_log_has_one_line_for_each_milestone_however_often_a_run_was_stopped(
    trained: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(recipe(data), tmp_path, device="cpu", report=stop_at(6))
    train(recipe(data), tmp_path, device="cpu")
    assert [row["step"] for row in log(tmp_path)] == [row["step"] for row in log(trained)]


def test_a_finished_training_is_returned_as_it_is(trained: Path, data: Path) -> None:
    before = (trained / "best" / "model.safetensors").stat().st_mtime_ns
    again = train(recipe(data), trained, device="cpu")
    assert (trained / "best" / "model.safetensors").stat().st_mtime_ns == before
    assert again.folder == trained / "best"
    assert again.mean_iou == pytest.approx(max(float(row["mean_iou"]) for row in log(trained)), abs=1e-4)


def test_the_run_of_another_recipe_is_not_gone_on_with(trained: Path, data: Path) -> None:
    other = recipe(data, schedule={**content()["schedule"], "rate": 0.5})
    with pytest.raises(RequestError, match="holds a run of another recipe; give another --out"):
        train(other, trained, device="cpu")


def test_a_run_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    data, out = write_data(tmp_path / "data"), tmp_path / "run"
    train(recipe(data), out, device="cpu")
    for folder in ("images", "masks"):
        (data / folder / "case1_0.png").rename(data / folder / "case2_9.png")
    with pytest.raises(RequestError, match="on other images than there are now, and may have learned from what would"):
        train(recipe(data), out, device="cpu")
    train(recipe(data), out, device="cpu", overwrite=True)


def test_bands_are_those_that_a_start_reads(trained: Path, data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "start"
    shutil.copytree(trained / "best", copy)
    card = load_card(copy)
    bands = Bands(names=("green", "red", "blue"), mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))
    write_card(copy, card.model_copy(update={"bands": bands}))
    start = {**content()["network"], "pretrained": str(copy)}
    begun = run(data, tmp_path / "a", network=start)
    assert begun.bands == bands
    assert begun.split.train[0].image.bands == bands.names
    assert begun.candidate.card.bands == bands
    stated = bands.model_dump() | {"mean": (9.0, 9.0, 9.0)}
    assert run(data, tmp_path / "b", network=start, bands=stated).bands.mean == (9.0, 9.0, 9.0)
    with pytest.raises(RequestError, match="reads its bands in the order green, red, blue, and the recipe has red"):
        run(data, tmp_path / "c", network=start, bands={**stated, "names": ["red", "green", "blue"]})
    # Numbers of another type have another scale.
    write_card(copy, card.model_copy(update={"bands": bands.model_copy(update={"dtype": "uint16"})}))
    assert run(data, tmp_path / "d", network=start, bands=None).bands.names == bands.names
    recipe(data)


@pytest.mark.parametrize("changed", [{"heads": 6}, {"rope_off_from": "high"}, {"rope_off": 0.5}])
def test_a_model_whose_weights_only_look_alike_cannot_be_started_from(
    trained: Path, data: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    overrides = {**content()["network"]["overrides"], **changed}
    start = {**content()["network"], "overrides": overrides, "pretrained": str(trained / "best")}
    with pytest.raises(RequestError, match="do not fit this network; give the recipe its preset, stem, overrides"):
        run(data, tmp_path, network=start)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"not a checkpoint"])
def test_a_damaged_checkpoint_is_named(data: Path, tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "training.pt").write_bytes(damage)
    with pytest.raises(RequestError, match=r"training\.pt cannot be read") as caught:
        train(recipe(data), tmp_path, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_something_else_is_named(data: Path, tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "training.pt")
    with pytest.raises(RequestError, match=r"training\.pt cannot be read"):
        train(recipe(data), tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("changed", "error", "reason"),
    [
        ({"network": {**content()["network"], "overrides": {"depth": 3}}}, RequestError, "network.overrides: .*depth"),
        ({"network": {**content()["network"], "overrides": {"heads": 5}}}, ModelError, "head's width"),
        ({"network": {**content()["network"], "preset": "huge"}}, ModelError, "there is no preset 'huge'"),
        ({"network": {**content()["network"], "stem": "resnet0"}}, ModelError, "the stem 'resnet0' is no encoder"),
        ({"network": {**content()["network"], "head": "x"}}, ModelError, "there is no head 'x'"),
        ({"network": {**content()["network"], "pretrained": "imagenet"}}, RequestError, "no ImageNet weights"),
        ({"network": {**content()["network"], "pretrained": "nowhere"}}, ModelError, "there is no model"),
        (
            {"network": {**content()["network"], "stem": "tu-swin_tiny_patch4_window7_224"}},
            ModelError,
            "this stem takes images of one size only",
        ),
        (
            {"network": {"rival": "smp:DPT:tu-vit_tiny_patch16_224"}},
            RequestError,
            "the network 'DPT:tu-vit_tiny_patch16_224' takes images of one size only",
        ),
        (
            {"network": {**content()["network"], "overrides": {"patch": 128}}},
            RequestError,
            "windows of 64 px are smaller than one patch of 128 px; make window larger",
        ),
        ({"bands": {"names": ["x"], "mean": [0], "std": [1]}}, RequestError, "has 3 bands; the model reads 1"),
        ({"schedule": {**content()["schedule"], "rate": 1e30}}, RequestError, "the loss became .* lower the rate"),
        (
            {
                "network": {**content()["network"], "stem": "resnet18", "deep": True},
                "schedule": {**content()["schedule"], "batch": 1, "crop": 32},
            },
            RequestError,
            "a batch of 1 crop of 32 px leaves one value to normalise by; make schedule.batch or schedule.crop larger",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_said(
    data: Path, tmp_path: Path, changed: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason) as caught:
        train(recipe(data, **changed), tmp_path / "run", device="cpu")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "best").exists()


def test_a_loss_that_is_no_number_leaves_the_last_good_model_and_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = run(data, tmp_path)
    learn = training.learner.learn
    monkeypatch.setattr(training.learner, "learn", lambda *a: learn(*a) if a[-1] < 4 else math.nan)
    with pytest.raises(RequestError, match="the model of step 3 is kept"):
        training.go_on()
    assert load_model(tmp_path / "best").card.scores
    assert torch.load(tmp_path / "training.pt", weights_only=True)["step"] == 3


def test_a_network_that_breaks_between_two_steps_leaves_the_last_good_model(data: Path, tmp_path: Path) -> None:
    training = run(data, tmp_path)
    training.go_on()
    before = (tmp_path / "best" / "model.safetensors").read_bytes()
    with torch.no_grad():
        next(training.learner.average.module.parameters()).fill_(math.nan)
    with pytest.raises(RequestError, match=r"what the network says after step 6 is no number: lower the rate .* kept"):
        training.milestone(16, 0.0)
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == before


def test_two_trainings_do_not_share_a_folder(data: Path, tmp_path: Path) -> None:
    asked = recipe(data)
    with alone_in(tmp_path), pytest.raises(RequestError, match=r"another training is at work in .*; wait for it, or"):
        train(asked, tmp_path, device="cpu")
    train(asked, tmp_path, device="cpu")
    assert not list(tmp_path.glob("*.lock"))


def test_a_training_stops_early_where_nothing_gets_better(data: Path, tmp_path: Path) -> None:
    # A rate of nothing: the first validation is never beaten.
    schedule = {**content()["schedule"], "steps": 60, "rate": 1e-12, "patience": 2, "validate_every": 2, "average": 0.0}
    done = train(recipe(data, schedule=schedule), tmp_path, device="cpu")
    assert done.step == 2
    assert [row["step"] for row in log(tmp_path)] == ["2", "4", "6"]
    before = (tmp_path / "log.csv").stat().st_mtime_ns
    assert train(recipe(data, schedule=schedule), tmp_path, device="cpu") == done
    assert (tmp_path / "log.csv").stat().st_mtime_ns == before


def test_crops_of_several_sides_and_every_loss_train(data: Path, tmp_path: Path) -> None:
    schedule = {**content()["schedule"], "crop": [32, 64], "border": 0.5}
    training = run(data, tmp_path, schedule=schedule, loss={"focal": 1, "boundary": 0.01})
    assert {images.shape[-1] for images, _ in training.batches()} == {32, 64}
    training.go_on()
    assert all(float(row["loss"]) > 0 for row in log(tmp_path))


def test_a_model_of_crops_of_several_sides_is_scored_with_larger_windows(data: Path, tmp_path: Path, veca: Any) -> None:
    made = recipe(data, schedule={**content()["schedule"], "crop": [32, 64, 96], "steps": 20, "validate_every": 20})
    trained = train(made, tmp_path / "run", device="cpu")
    command = ["evaluate", trained.folder, data / "recipe.yaml", "--cores", 16, "--device", "cpu", "--json"]
    scores = []
    for window in (64, 96):
        said = veca(*command, "--window", window)
        assert said.status == 0, said.err
        scores.append(json.loads(said.out)["scores"][0]["mean_iou"])
    assert scores[0] == pytest.approx(trained.mean_iou, abs=1e-4), "at its own window"
    assert scores[1] == pytest.approx(scores[0], abs=0.1)


def test_what_will_hardly_be_meant_is_said_and_a_class_without_any_pixel_is_refused(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    extra = {"value": 7, "name": "unseen", "color": "#FF0000"}
    with pytest.raises(RequestError, match="no image shows the class 'unseen' \\(value 7\\); remove it"):
        train(recipe(data, classes=[*CLASSES, extra]), tmp_path / "a", device="cpu")
    other = write_data(tmp_path / "other")
    for path in (other / "masks").glob("case[01]*"):
        Image.fromarray(np.minimum(np.array(Image.open(path)), 4)).save(path)
    train(
        recipe(other, schedule={**content()["schedule"], "crop": 96}), tmp_path / "b", device="cpu", report=said.append
    )
    assert "no image to learn from shows the class 'rare' (value 9)" in said[0]
    assert said[1].startswith("note: 4 of 4 images to learn from are smaller than a crop of 96 px")


@pytest.mark.parametrize(("cases", "side"), [("case[01]*", "to learn from"), ("case2*", "held back")])
def test_images_of_which_nothing_is_known_are_refused(tmp_path: Path, cases: str, side: str) -> None:
    data = write_data(tmp_path / "data")
    for path in (data / "masks").glob(cases):
        Image.fromarray(np.full_like(np.array(Image.open(path)), 255)).save(path)
    with pytest.raises(RequestError, match=f"no image {side} shows a pixel of any class"):
        train(recipe(data), tmp_path / "run", device="cpu")


def test_a_device_that_is_not_there_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no device 'gpu'"):
        train(recipe(data), tmp_path, device="gpu")


def test_training_starts_from_another_model(trained: Path, data: Path, tmp_path: Path) -> None:
    start = {**content()["network"], "pretrained": str(trained / "best")}
    frozen = {**content()["schedule"], "steps": 1, "rate": 1e-12}
    train(recipe(data, network=start, schedule=frozen), tmp_path, device="cpu")
    assert load_card(tmp_path / "best").data == "; started from the model tiny"
    mine, theirs = (load_model(run / "best").network.state_dict() for run in (tmp_path, trained))
    for name, value in theirs.items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(mine[name], value, atol=1e-6, rtol=1e-5)


def test_a_start_that_may_know_what_is_held_back_now_is_told(data: Path, trained: Path, tmp_path: Path) -> None:
    start = {**content()["network"], "pretrained": str(trained / "best")}
    said: list[str] = []
    for group in ("case2", "case1"):
        asked = recipe(data, network=start, data={**content()["data"], "validate_on": [group]})
        Run.prepare(asked, tmp_path / group, CPU, said.append)
        warned = any("made with case2 held back, and may have learned from what is held back now" in s for s in said)
        assert warned == (group == "case1")


def test_a_share_of_the_start_stays_in_what_is_kept_also_after_a_stop(
    trained: Path, data: Path, tmp_path: Path
) -> None:
    start = {**content()["network"], "pretrained": str(trained / "best"), "keep": 0.25}
    schedule = {**content()["schedule"], "steps": 3}
    train(recipe(data, network=start, schedule=schedule), tmp_path, device="cpu")
    learner = run(data, tmp_path, network=start, schedule=schedule).learner
    kept, mean = learner.kept().state_dict(), learner.average.module.state_dict()
    first = load_model(trained / "best").network.state_dict()
    for name, value in kept.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.25 * first[name] + 0.75 * mean[name], msg=name)
    best = load_model(tmp_path / "best").network.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in best.items())
    with pytest.raises(RequestError, match="keep is a share of a model to go on from, and pretrained is imagenet"):
        recipe(data, network={"pretrained": "imagenet", "keep": 0.5})


def test_a_new_head_is_not_mixed_with_the_random_weights_that_it_began_with(
    trained: Path, data: Path, tmp_path: Path
) -> None:
    start = {**content()["network"], "pretrained": str(trained / "best"), "keep": 0.25}
    two = {"classes": CLASSES[:2], "data": {**content()["data"], "ignore": [9]}}
    learner = Run.prepare(recipe(data, network=start, **two), tmp_path, CPU, lambda _: None).learner
    mean = {name: value.clone() for name, value in learner.average.module.state_dict().items()}
    for value in learner.average.module.parameters():
        value.data += 1
    kept = learner.kept().state_dict()
    torch.testing.assert_close(kept["head.classify.weight"], mean["head.classify.weight"] + 1)
    torch.testing.assert_close(kept["encoder.bank.tokens"], mean["encoder.bank.tokens"] + 0.75)
    recipe(data)


def test_classes_in_another_order_keep_their_own_weights(trained: Path, data: Path, tmp_path: Path) -> None:
    start = {**content()["network"], "pretrained": str(trained / "best")}
    begun = run(data, tmp_path, network=start, classes=[CLASSES[i] for i in (2, 0, 1)])
    mine, theirs = (n.state_dict() for n in (begun.learner.network, load_model(trained / "best").network))
    for name in ("head.classify.weight", "head.classify.bias"):
        assert torch.equal(mine[name], theirs[name][[2, 0, 1]])
    recipe(data)


def test_a_model_with_another_head_gives_its_encoder_to_a_linear_probe(data: Path, tmp_path: Path) -> None:
    drawing = {**content()["network"], "head": "unet"}
    base = train(recipe(data, network=drawing), tmp_path / "base", device="cpu").folder
    probe = {**content()["network"], "pretrained": str(base)}
    schedule = {**content()["schedule"], "freeze": True}
    done = train(recipe(data, network=probe, schedule=schedule), tmp_path / "probe", device="cpu").folder
    theirs = load_model(base).network.encoder.state_dict()
    for name, value in load_model(done).network.encoder.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def test_a_shipped_model_is_started_from_by_its_name(data: Path, tmp_path: Path) -> None:
    start = {"preset": "tiny", "stem": "tu-tf_efficientnet_lite0", "head": "unet", "pretrained": "nuclei"}
    begun = run(data, tmp_path, network=start)
    theirs = load_model("nuclei").network.encoder.state_dict()
    for name, value in begun.learner.network.encoder.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    assert begun.candidate.card.data.startswith("; started from the model nuclei (80 crops")
    # A folder of that name beside the recipe goes before.
    (data / "nuclei").mkdir()
    assert recipe(data, network=start).network.pretrained == data / "nuclei"
    (data / "nuclei").rmdir()


def test_a_model_of_other_sizes_cannot_be_started_from(trained: Path, data: Path, tmp_path: Path) -> None:
    overrides = {**content()["network"]["overrides"], "layers": 3}
    start = {**content()["network"], "overrides": overrides, "pretrained": str(trained / "best")}
    with pytest.raises((RequestError, ModelError), match="do not fit") as caught:
        train(recipe(data, network=start), tmp_path, device="cpu")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def run(data: Path, out: Path, **changed: Any) -> Run:
    return Run.prepare(recipe(data, **changed), out, CPU, lambda _: None)


def test_budgets_are_drawn_by_their_weights_and_by_seed_and_step_alone(data: Path, tmp_path: Path) -> None:
    one, other = run(data, tmp_path / "a"), run(data, tmp_path / "b")
    drawn = []
    for step in range(600):
        one.step = other.step = step
        drawn.append(one.draw_cores())
        assert other.draw_cores() == drawn[-1]
    assert set(drawn) == {8, 16}
    # Both budgets of a bank of 16 have the published weight 1.
    assert 0.42 < np.mean(np.array(drawn) == 8) < 0.58


def test_the_rate_warms_up_and_falls_to_a_hundredth() -> None:
    described = ScheduleRecipe(steps=200, warmup=10, rate=0.1)
    rates = [learning_rate(step, described) for step in range(201)]
    assert rates[:3] == pytest.approx([0.01, 0.02, 0.03])
    assert max(rates) == rates[9] == rates[10] == 0.1
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.001)


def test_vectors_do_not_decay_and_a_pretrained_stem_learns_slowly(trained: Path, data: Path) -> None:
    network = load_model(trained / "best").network
    groups = parameter_groups(network, recipe(data).schedule)
    assert sum(len(g["params"]) for g in groups) == len(list(network.parameters()))
    for group in groups:
        assert group["factor"] == 1.0
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
    lite = {**content()["network"], "stem": "tu-tf_efficientnet_lite0", "pretrained": "imagenet"}
    described = recipe(data, network=lite)
    card = new_card(described, load_card(trained / "best").bands, architecture(described.network, 3))
    stemmed = build(card.architecture, card.bands, 3)
    slow = [
        p
        for g in parameter_groups(stemmed, described.schedule, "encoder.stem.body.")
        if g["factor"] == 0.2
        for p in g["params"]
    ]
    assert {id(p) for p in slow} == {id(p) for p in stemmed.encoder.stem.body.parameters()}
    assert "started from ImageNet weights" in card.data


def test_deeper_layers_learn_more_slowly_where_that_is_asked_for(trained: Path) -> None:
    network = load_model(trained / "best").network
    rates: dict[int, float] = {}
    for group in parameter_groups(network, ScheduleRecipe(layer_decay=0.5)):
        rates |= {id(p): group["factor"] for p in group["params"]}
    encoder = network.encoder
    assert rates[id(network.head.classify.weight)] == rates[id(encoder.norm.weight)] == 1.0
    assert rates[id(encoder.blocks[1].mlp.fc1.weight)] == 0.5
    assert rates[id(encoder.blocks[0].mlp.fc1.weight)] == rates[id(encoder.moves[0].weight)] == 0.25
    assert rates[id(encoder.stem.proj.weight)] == rates[id(encoder.bank.tokens)] == 0.125


def test_a_published_checkpoint_gives_the_encoder_its_sizes_and_weights(
    data: Path, tmp_path: Path, golden: Path
) -> None:
    start = {"stem": "patch", "head": "linear", "pretrained": str(golden / "official_tiny_projected.pt")}
    schedule = {**content()["schedule"], "freeze": True, "crop": 64}
    done = train(recipe(data, network=start, schedule=schedule), tmp_path, device="cpu")
    ours = load_model(done.folder).network.encoder
    theirs = load_official_encoder(golden / "official_tiny_projected.pt")
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name
    assert ours.config.output_dim is None
    assert "started from official_tiny_projected.pt" in load_card(done.folder).data


def test_bands_are_measured_on_valid_pixels(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    for path in (data / "images").iterdir():
        picture = np.array(Image.open(path))
        clear = np.full((*picture.shape[:2], 1), 255, np.uint8)
        clear[: len(clear) // 2] = 0
        picture[: len(clear) // 2] = 255
        Image.fromarray(np.concatenate([picture, clear], axis=2)).save(path)
    bands = measure_bands(find_scenes(recipe(data).data))
    assert max(bands.mean) < 240
    assert bands.dtype == "uint8"


def test_remove_run_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    for name in ("training.pt", "log.csv", "curves.png", "mine.txt"):
        (tmp_path / name).touch()
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "model.json").touch()
    remove_run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    remove_run(tmp_path / "none")


# Evaluation.


@pytest.fixture(scope="module")
def model(trained: Path) -> Model:
    return load_model(trained / "best")


def test_there_is_one_score_for_each_budget(model: Model, data: Path, tmp_path: Path) -> None:
    result = evaluate(model, recipe(data).data, device="cpu")
    assert [score.cores for score in result.scores] == [8, 16]
    assert result.scenes == ("case2_0", "case2_1")
    # What training recorded for the full budget was measured by the same path.
    extra = {"boundary_f1", "ece"}
    assert result.scores[1].model_dump(exclude=extra) == model.card.scores[0].model_dump(exclude=extra)
    assert all(0 <= getattr(result.scores[1], name) <= 1 for name in extra)
    assert result.held == model.card.validation == "held back: case2"
    table = result.table().splitlines()
    columns = ["cores", "mean", "IoU", "95", "%", "mean", "Dice", "border", "F1", "ECE"]
    names = list(result.scores[0].iou)
    assert table[0].split() == [*columns, *names, *(word for name in names for word in ("Dice", name))]
    assert [line.split()[0] for line in table[1:]] == ["8", "16"]
    written = write_evaluation(result, tmp_path / "scores")
    assert [p.name for p in written] == ["evaluation.json", "evaluation.png"]
    saved = json.loads(written[0].read_text(encoding="utf-8"))
    assert saved["scores"][0]["mean_iou"] == result.scores[0].mean_iou
    dice = [saved["scores"][1]["dice"][name] for name in names]
    assert dice == pytest.approx([2 * v / (1 + v) for v in result.scores[1].iou.values()], abs=1e-4)
    assert result.scores[1].mean_dice == pytest.approx(np.mean(dice), abs=1e-4)
    assert table[2].split()[-len(names) :] == [f"{v:.3f}" for v in dice]
    assert width(written[1]) > 300


def test_scores_are_those_of_the_labels_that_segment_writes(model: Model, data: Path, tmp_path: Path) -> None:
    result = evaluate(model, recipe(data).data, cores=[8], everything=True, device="cpu")
    assert len(result.scenes) == 6
    hits, unions = np.zeros(3), np.zeros(3)
    for path in sorted((data / "images").iterdir()):
        bundle = segment(path, model, tmp_path, Options(device="cpu", cores=8, exports=()))
        called, truth = bundle.labels().levels[0][:], np.array(Image.open(data / "masks" / path.name))
        for i, value in enumerate((0, 4, 9)):
            hits[i] += ((called == value) & (truth == value)).sum()
            unions[i] += ((called == value) | (truth == value)).sum()
    assert list(result.scores[0].iou.values()) == pytest.approx(hits / unions, abs=1e-4)


def test_recorded_scores_are_in_the_card(trained: Path, model: Model, data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("model.json", "model.safetensors"):
        (copy / name).write_bytes((trained / "best" / name).read_bytes())
    result = evaluate(load_model(copy), recipe(data).data, device="cpu")
    record_scores(load_model(copy), result)
    assert load_card(copy).scores == result.scores
    # Some budgets take the place of theirs alone; scenes that may have been learned from are not recorded.
    some = evaluate(load_model(copy), recipe(data).data, cores=[8], device="cpu")
    worse = some.scores[0].model_copy(update={"mean_iou": 0.1})
    record_scores(load_model(copy), dataclasses.replace(some, scores=(worse,)))
    assert load_card(copy).scores == (worse, result.scores[1])
    with pytest.raises(RequestError, match=r"trained with other scenes \(held back: case2\) than this recipe has"):
        record_scores(load_model(copy), dataclasses.replace(some, held="held back: other"))
    assert load_card(copy).validation == "held back: case2"
    with pytest.raises(RequestError, match="a card records what held-back scenes gave; leave out --everything"):
        record_scores(load_model(copy), dataclasses.replace(some, held=""))
    record_scores(load_model(copy), result)
    assert load_card(copy).score(8) == result.scores[0]
    assert load_model(copy).digest != model.digest


def test_scores_of_another_recipes_scenes_are_not_recorded_and_none_is_scored(
    trained: Path, data: Path, veca: Any
) -> None:
    recipe(data)
    before = load_card(trained / "best")
    said = veca(
        "evaluate", trained / "best", data / "recipe.yaml", "--record", "--set", "data.validate_on=[case0]",
        "--device", "cpu",
    )  # fmt: skip
    assert "(held back: case2) than this recipe has (held back: case0), and may have learned from these" in said.line
    assert load_card(trained / "best") == before


def test_who_scores_what_a_model_may_have_learned_from_is_told(model: Model, data: Path) -> None:
    for group in ("case2", "case0"):
        said: list[str] = []
        asked = recipe(data, data={**content()["data"], "validate_on": [group]}).data
        result = evaluate(model, asked, cores=[8], device="cpu", report=said.append)
        told = "tiny was made with case2 held back, and may have learned from the scenes that are scored here"
        assert result.notes == ((told,) if group == "case0" else ())
        assert any(line == f"warning: {told}" for line in said) == (group == "case0")
        assert result.content()["notes"] == result.notes


def test_a_rival_is_not_compared_on_what_the_model_may_have_learned_from(
    trained: Path, data: Path, tmp_path: Path, veca: Any
) -> None:
    recipe(data)
    said = veca(
        "evaluate", trained / "best", data / "recipe.yaml", "--set", "data.validate_on=[case0]", "--device", "cpu",
        "--against", "smp:Unet:resnet18", "--out", tmp_path / "scores",
    )  # fmt: skip
    assert said.status == 2
    assert "may have learned from the scenes that are scored here, which a rival would not; hold back what" in said.line


def test_scenes_of_which_nothing_is_known_are_not_scored(model: Model, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    for path in (data / "masks").glob("case2*"):
        Image.fromarray(np.full_like(np.array(Image.open(path)), 255)).save(path)
    with pytest.raises(RequestError, match="no image to score shows a pixel of any class"):
        evaluate(model, recipe(data).data, device="cpu")


def test_scores_with_windows_of_another_side_are_not_recorded(trained: Path, data: Path, veca: Any) -> None:
    recipe(data)
    before = load_card(trained / "best")
    command = ("evaluate", trained / "best", data / "recipe.yaml", "--cores", 8, "--device", "cpu")
    assert (
        "the model's own window of 64 px gave, not 96; leave out --window"
        in veca(*command, "--record", "--window", 96).line
    )
    scored = evaluate(load_model(trained / "best"), recipe(data).data, cores=[8], window=96, device="cpu")
    with pytest.raises(RequestError, match="leave out --window, or --record"):
        record_scores(load_model(trained / "best"), scored)
    assert load_card(trained / "best") == before
    assert evaluate(load_model(trained / "best"), recipe(data).data, cores=[8], window=64, device="cpu").window is None


def test_squares_of_another_side_are_other_scenes(model: Model, data: Path) -> None:
    cut = DataRecipe(images=data / "images", masks=data / "masks", blocks=64, validate_on=("case0_0@0,0",))
    scored = evaluate(model, cut, cores=[8], device="cpu")
    assert scored.held == "held back: case0_0@0,0, in squares of 64 px"
    other = evaluate(model, cut.model_copy(update={"blocks": 96}), cores=[8], device="cpu")
    assert other.scenes == scored.scenes
    assert other.held != scored.held


def test_masks_with_other_values_for_the_models_classes_are_refused(trained: Path, data: Path, veca: Any) -> None:
    swapped = [{**CLASSES[0], "value": 4}, {**CLASSES[1], "value": 0}, {**CLASSES[2], "name": "scarce"}]
    recipe(data, classes=swapped)
    said = veca("evaluate", trained / "best", data / "recipe.yaml", "--device", "cpu")
    assert "'background' is 4 in the masks and 0 in the model, 'nucleus' is 0 in the masks and 4" in said.line
    recipe(data)


def test_what_a_recipe_ignores_is_not_scored_though_the_model_has_a_class_for_it(model: Model, data: Path) -> None:
    two = recipe(data, classes=CLASSES[:2], data={**content()["data"], "ignore": [9]}).data
    (score,) = evaluate(model, two, cores=[8], device="cpu").scores
    lookup = class_lookup([0, 4, 9], (9,))
    known = sum(int((np.array(Image.open(data / "masks" / f"case2_{i}.png")) != 9).sum()) for i in (0, 1))
    scenes = split_scenes(find_scenes(two), two).validation
    measured = validate(model.network, scenes, lookup, CPU, cores=8, window=64, multiple=16)
    assert measured.confusion.counts.sum() == known
    assert score.mean_iou == pytest.approx(measured.confusion.mean_iou, abs=1e-4)
    recipe(data)


@pytest.mark.parametrize("budgets", [[7], [8, 24], [0]])
def test_a_budget_that_the_model_has_not_is_refused_before_anything_runs(
    model: Model, data: Path, budgets: list[int]
) -> None:
    said: list[str] = []
    with pytest.raises(ModelError, match="ask for a multiple of 8 from 8 to 16"):
        evaluate(model, recipe(data).data, cores=budgets, device="cpu", report=said.append)
    assert said == []


def test_data_of_other_classes_or_bands_is_refused(model: Model, tmp_path: Path) -> None:
    data = write_data(tmp_path)
    path = data / "masks" / "case2_0.png"
    mask = np.array(Image.open(path))
    Image.fromarray(np.where(mask == 4, 5, mask).astype(np.uint8)).save(path)
    with pytest.raises(RequestError, match=r"holds the values \[5\]"):
        evaluate(model, recipe(data).data, device="cpu")
    Image.fromarray(mask).save(path)
    picture = data / "images" / "case2_0.png"
    Image.open(picture).convert("L").save(picture)
    with pytest.raises(RequestError, match="has 1 bands; tiny reads 3"):
        evaluate(model, recipe(data).data, device="cpu")


def test_validation_is_the_same_in_blocks(model: Model, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = recipe(data)
    scenes = split_scenes(find_scenes(described.data), described.data).validation
    lookup = class_lookup([0, 4, 9], ())

    def counts() -> Any:
        return validate(model.network, scenes, lookup, CPU, cores=16, window=64, multiple=16).confusion.counts

    whole = counts()
    monkeypatch.setattr("pipelines.validation.VALIDATION_BLOCK", 32)
    assert np.array_equal(counts(), whole)


def test_windows_of_another_size_give_other_scores(model: Model, data: Path) -> None:
    whole = evaluate(model, recipe(data).data, cores=[16], window=96, device="cpu").scores[0]
    assert whole.mean_iou != model.card.scores[0].mean_iou


def test_a_rival_is_trained_once_and_stands_beside_the_model(
    trained: Path, data: Path, tmp_path: Path, veca: Any
) -> None:
    command = ["evaluate", trained / "best", data / "recipe.yaml", "--cores", 16, "--out", tmp_path, "--device", "cpu"]
    recipe(data)
    said = veca(*command, "--against", "smp:Unet:resnet18")
    assert said.status == 0, said.err
    rows = said.out.strip().splitlines()
    assert [row.split()[0] for row in rows] == ["cores", "16", "smp:Unet:resnet18"]
    written = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    kept = tmp_path / "rivals" / "smp-Unet-resnet18" / "best" / "rival.safetensors"
    before = kept.stat().st_mtime_ns
    assert veca(*command, "--against", "smp:Unet:resnet18").out == said.out
    assert kept.stat().st_mtime_ns == before
    assert 0 <= written["rivals"]["smp:Unet:resnet18"]["ece"] <= 1
    assert "needs a folder" in veca(*command[:3], "--against", "smp:Unet:resnet18").line
    assert "leave out --everything" in veca(*command[:3], "--everything", "--record").line


def test_objects_are_scored_where_they_are_told_apart(model: Model, tmp_path: Path) -> None:
    data = write_data(tmp_path)
    (data / "instances").mkdir()
    for path in (data / "masks").iterdir():
        ids = ndimage.label(np.array(Image.open(path)) == 4)[0]
        Image.fromarray(ids.astype(np.uint16)).save(data / "instances" / path.name)
    described = {**content()["data"], "instances": "instances"}
    score = evaluate(model, recipe(data, data=described).data, cores=[8], device="cpu").scores[0]
    assert score.pq is not None
    assert 0 <= score.pq <= 1


def test_an_object_is_of_the_class_of_most_of_its_pixels(model: Model) -> None:
    """Objects that are drawn a pixel wider than their class do not make objects of the background."""
    truth, objects = np.zeros((2, 40, 40), np.uint8)
    truth[10:20, 10:20], truth[25:35, 5:15] = 4, 9
    objects[9:21, 9:21], objects[24:36, 4:16] = 1, 2
    whole = Scene.whole("a", "a", ArraySource(np.zeros((40, 40, 3), np.uint8)), ArraySource(truth))
    scene = dataclasses.replace(whole, objects=MaskTruth(ArraySource(objects), whole.view))
    lookup = class_lookup([0, 4, 9], ())
    measured = validate(model.network, [scene], lookup, CPU, cores=8, window=64, multiple=16, thorough=True)
    assert list(measured.objects) == [1, 2]
    assert all(one.matched + one.missed == 1 for one in measured.objects.values())


def test_objects_that_are_called_where_a_scene_has_none_count(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first scene's one object is called as it is; the second has none, and two are called there."""
    truths = np.zeros((2, 20, 30), np.uint8)
    truths[0, 4:9, 4:9] = 1
    scenes = []
    for i, truth in enumerate(truths):
        picture = ArraySource(np.zeros((20, 30, 3), np.uint8))
        whole = Scene.whole(str(i), str(i), picture, ArraySource(truth))
        scenes.append(dataclasses.replace(whole, objects=MaskTruth(ArraySource(truth.astype(np.uint16)), whole.view)))

    def quality(*invented: tuple[slice, slice]) -> float | None:
        called = truths.copy()
        for place in invented:
            called[1][place] = 1

        def say(_predictor: Any, scene: Scene, _grid: Any, _piece: Any) -> tuple[Any, Any]:
            return called[int(scene.name)], np.ones((20, 30), np.float32)

        monkeypatch.setattr("pipelines.validation._called", say)
        measured = validate(
            network, scenes, class_lookup([0, 1], ()), CPU, cores=8, window=64, multiple=16, thorough=True
        )
        assert list(measured.objects) == [1]
        return measured.score(8, ["background", "nucleus"]).pq

    network = build(architecture(recipe(data).network, 3), load_card("nuclei").bands, 2)
    assert quality() == 1.0
    assert quality(np.s_[2:4, 2:4], np.s_[10:12, 20:22]) == 0.5
