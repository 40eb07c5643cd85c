"""Distillation: the paper's terms, teachers of every kind, and an encoder that comes to see what its teacher sees."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from labelled import content, recipe, write_data
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from pipelines import distill, train
from pipelines.distill_recipe import DistillRecipe, read_distill_recipe
from pipelines.distillation import Distillation, losses, optimisers
from pipelines.errors import RequestError
from pipelines.teacher import load_teacher
from veca_core import ModelError, load_model
from veca_core.card import Bands
from veca_core.encoder import Tokens
from veca_core.weights import load_encoder

BANDS = {"names": ["red", "green", "blue"], "mean": [127, 127, 127], "std": [128, 128, 128]}
SMALL = {"dim": 48, "layers": 2, "heads": 3, "cores": 16}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("labelled"))


def described(data: Path, **changed: Any) -> DistillRecipe:
    plain = {
        "name": "student", "images": ["images"], "teacher": "smp:resnet18", "teacher_weights": "random", "bands": BANDS,
        "network": {"preset": "tiny", "stem": "patch", "overrides": SMALL},
        "augment": {"rotate": 0, "color": 0, "blur": 0},
        "stages": [{"steps": 4, "sides": [64], "batch": 2}, {"steps": 2, "sides": [48, 96], "batch": 2}],
        "warmup": 1, "save_every": 3, **changed,
    }  # fmt: skip
    path = data / "distill.yaml"
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    return read_distill_recipe(path)


def test_the_loss_is_the_papers_three_terms() -> None:
    torch.manual_seed(0)
    cores, patches, whole, theirs = (torch.randn(*s) for s in ((2, 8, 5), (2, 9, 5), (2, 5), (2, 9, 5)))
    found = losses(Tokens(cores, patches, (3, 3), ()), whole, theirs)
    unit = [F.normalize(x, dim=-1) for x in (cores[:, 0], whole, patches, theirs)]
    assert found.global_cosine.item() == pytest.approx(1 - (unit[0] * unit[1]).sum(-1).mean().item(), abs=1e-6)
    assert found.patch_cosine.item() == pytest.approx(1 - (unit[2] * unit[3]).sum(-1).mean().item(), abs=1e-6)
    assert found.patch_mse.item() == pytest.approx(((patches - theirs) ** 2).mean().item(), abs=1e-6)
    same = losses(Tokens(whole[:, None], theirs, (3, 3), ()), whole, theirs)
    assert same.total.item() == pytest.approx(0, abs=1e-6)


def test_a_stopped_distillation_goes_on_to_the_same_encoder(data: Path, tmp_path: Path) -> None:
    made = described(data)
    whole = distill(made, tmp_path / "whole", device="cpu")
    said: list[str] = []

    def stop(line: str) -> None:
        if line.startswith("step 6"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(made, tmp_path / "cut", device="cpu", report=stop)
    cut = distill(made, tmp_path / "cut", device="cpu", report=said.append)
    assert said[0] == "going on after step 3 of 6"
    (first, card), (second, _) = load_encoder(whole), load_encoder(cut)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, atol=1e-5, rtol=1e-4)
    assert card.teacher == "smp:resnet18"
    assert first.config.output_dim == 256 + 512
    with (tmp_path / "cut" / "log.csv").open(encoding="utf-8") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["3", "6"]
    with pytest.raises(RequestError, match="holds a run of another recipe"):
        distill(described(data, rate=0.5), tmp_path / "cut", device="cpu")


def test_stages_and_budgets_are_drawn_by_step_alone(data: Path, tmp_path: Path) -> None:
    run = Distillation(described(data), tmp_path, torch.device("cpu"), lambda _: None)
    sides = [batch.shape[-1] for batch in run.batches()]
    assert sides[:4] == [64] * 4
    assert set(sides[4:]) <= {48, 96}
    assert [batch.shape[-1] for batch in run.batches()] == sides


def test_muon_has_the_blocks_matrices_and_adamw_the_rest(data: Path, tmp_path: Path) -> None:
    run = Distillation(described(data), tmp_path, torch.device("cpu"), lambda _: None)
    muon, adamw = optimisers(run.student, run.recipe)
    assert isinstance(muon, torch.optim.Muon)
    held = [{id(p) for g in o.param_groups for p in g["params"]} for o in (muon, adamw)]
    blocks = {id(p) for n, p in run.student.named_parameters() if n.startswith("blocks.") and p.ndim == 2}
    assert held[0] == blocks
    assert held[0] | held[1] == {id(p) for p in run.student.parameters()}
    assert not held[0] & held[1]


def test_a_distilled_encoder_sees_what_its_teacher_sees_and_more_so_with_time(data: Path, tmp_path: Path) -> None:
    pixels = torch.from_numpy(np.array(Image.open(data / "images" / "case2_0.png"))[:64, :80]).permute(2, 0, 1)[None]
    alike = []
    for steps in (1, 40):
        made = described(data, stages=[{"steps": steps, "sides": [64], "batch": 4}], rate=3e-3, save_every=40)
        run = Distillation(made, tmp_path / str(steps), torch.device("cpu"), lambda _: None)
        run.go_on()
        student, card = load_encoder(distill(made, tmp_path / str(steps), device="cpu"))
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (card.bands.mean, card.bands.std))
        with torch.no_grad():
            whole, patches = run.teacher(pixels)
            tokens = student((pixels - mean) / std)
        found = losses(tokens, whole, patches)
        alike.append((1 - found.patch_cosine.item(), 1 - found.global_cosine.item()))
    assert all(late > early + 0.2 for early, late in zip(*alike, strict=True)), alike


def test_a_linear_probe_leaves_the_encoder_as_it_is(data: Path, tmp_path: Path) -> None:
    start = distill(described(data, source="drawn discs"), tmp_path / "distilled", device="cpu")
    schedule = {**content()["schedule"], "freeze": True, "rate": 0.01}
    network = {"stem": "patch", "head": "linear", "pretrained": str(start)}
    trained = train(recipe(data, network=network, schedule=schedule, bands=BANDS), tmp_path / "probe", device="cpu")
    encoder = load_encoder(start)[0].state_dict()
    ours = load_model(trained.folder)
    for name, value in ours.network.encoder.state_dict().items():
        assert torch.equal(value, encoder[name]), name
    assert ours.card.data == "; started from the encoder student, distilled from smp:resnet18 (drawn discs)"


def test_a_vision_transformer_of_timm_teaches_its_class_token_and_patches() -> None:
    name = "vit_tiny_patch16_224"
    teacher = load_teacher(f"timm:{name}", "random", 16, 3)
    pixels = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    whole, patches = teacher(pixels)
    assert whole.shape == (2, 192)
    assert patches.shape == (2, 4 * 6, 192)
    body: Any = teacher.body
    tokens = body.forward_features((pixels - teacher.mean) / teacher.std)
    torch.testing.assert_close(whole, F.layer_norm(tokens[:, 0], (192,)))
    torch.testing.assert_close(patches, F.layer_norm(tokens[:, 1:], (192,)))


def test_a_vision_transformer_with_registers_alone_teaches_the_mean_of_its_patches() -> None:
    teacher = load_teacher("timm:vit_medium_patch16_reg4_gap_256", "random", 16, 3)
    pixels = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    whole, _ = teacher(pixels)
    body: Any = teacher.body
    patches = body.forward_features((pixels - teacher.mean) / teacher.std)[:, 4:]
    torch.testing.assert_close(whole, F.layer_norm(patches.mean(dim=1), (teacher.dim,)))


def test_a_teachers_published_weights_are_fetched_when_it_is_known_to_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def download(repository: str, filename: str, revision: str | None) -> str:  # noqa: ARG001
        fetched.append(repository)
        return str(tmp_path / filename)

    monkeypatch.setattr("pipelines.pretrained.hf_hub_download", download)
    published = timm.create_model("vit_tiny_patch16_224")
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(RequestError, match="make them alike"):
        load_teacher("timm:vit_tiny_patch16_224", "published", 8, 3)
    assert not fetched
    teacher = load_teacher("timm:vit_tiny_patch16_224", "published", 16, 3)
    assert fetched == ["timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"]
    for name, value in teacher.body.state_dict().items():
        assert torch.equal(value, published.state_dict()[name]), name
    assert teacher.mean.flatten().tolist() == teacher.std.flatten().tolist() == [127.5] * 3


def test_a_convolutional_teacher_sees_pixels_at_the_scale_of_its_weights() -> None:
    teacher = load_teacher("smp:resnet18", "random", 16, 3)
    assert teacher.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert load_teacher("smp:tu-tf_efficientnet_lite0", "random", 16, 3).std.flatten().tolist() == [128] * 3


def test_a_convolutional_teacher_has_a_feature_for_each_patch() -> None:
    teacher = load_teacher("smp:resnet18", "random", 16, 3)
    pixels = torch.randint(0, 256, (1, 3, 48, 80), dtype=torch.uint8)
    whole, patches = teacher(pixels)
    assert patches.shape == (1, 15, teacher.dim)
    assert whole.shape == (1, teacher.dim)
    assert not teacher.train().training


def test_an_encoder_teaches_another(data: Path, tmp_path: Path) -> None:
    first = distill(described(data), tmp_path / "first", device="cpu")
    smaller = {"preset": "tiny", "stem": "patch", "overrides": {**SMALL, "layers": 1}}
    second = distill(
        described(data, teacher=f"veca:{first}", teacher_weights="published", network=smaller),
        tmp_path / "second", device="cpu",
    )  # fmt: skip
    assert load_encoder(second)[0].config.output_dim == 768


def test_a_teacher_sees_its_bands_in_its_own_order(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turned = {**BANDS, "names": ["Blue", "Red", "Green"], "mean": [1, 2, 3]}
    first = distill(described(data), tmp_path / "first", device="cpu")
    for name, spec in (("a", f"veca:{first}"), ("b", "smp:resnet18")):
        weights = "published" if name == "a" else "random"
        made = described(data, bands=turned, teacher=spec, teacher_weights=weights)
        run = Distillation(made, tmp_path / name, torch.device("cpu"), lambda _: None)
        seen: list[torch.Tensor] = []
        whole = run.teacher.forward
        monkeypatch.setattr(
            run.teacher, "forward", lambda pixels, seen=seen, whole=whole: seen.append(pixels) or whole(pixels)
        )
        pixels = torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 64, 64)  # blue 0, red 1, green 2
        run.learn(pixels, 16)
        assert seen[0][0, :, 0, 0].tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"teacher": "dino"}, "cannot read the teacher 'dino'; write one of smp:NAME, timm:NAME, veca:NAME"),
        ({"teacher": "smp:resnet0"}, "'resnet0' is no encoder"),
        ({"teacher": "timm:vit_nowhere"}, "timm has no model 'vit_nowhere'"),
        ({"teacher": "timm:hf-hub:someone/x"}, "timm has no model"),
        ({"teacher": "timm:resnet18"}, "is no plain vision transformer; name another teacher smp:tu-resnet18"),
        ({"teacher": "timm:swin_tiny_patch4_window7_224"}, "is no plain vision transformer"),
        ({"teacher": "timm:vit_tiny_patch16_224", "network": {"stem": "patch", "overrides": {**SMALL, "patch": 8}}},
         "has patches of 16 px and the student of 8: make them alike"),
        ({"network": {"stem": "patch", "overrides": {**SMALL, "patch": 14}}}, "the student has 14"),
        ({"teacher": "veca:nowhere", "teacher_weights": "published"}, "there is no model 'nowhere'"),
        ({"teacher": "smp:tu-legacy_seresnet18", "teacher_weights": "published"}, "no weights are published"),
        ({"teacher_weights": "missing.safetensors"}, "does not hold the teacher's weights"),
        ({"bands": {"names": ["x"], "mean": [0], "std": [1]}}, "has 3 bands; the model reads 1"),
        ({"images": ["nowhere"]}, "there is no file or folder"),
        ({"images": []}, "needs images and at least one stage"),
        ({"network": {"pretrained": "imagenet"}}, "starts from random weights, not from imagenet; leave out"),
        ({"network": {"pretrained": "best", "keep": 0.5}}, "leave out network.pretrained and network.keep"),
        ({"network": {"rival": "smp:Unet:resnet18"}}, "trains an encoder, not smp:Unet:resnet18; leave out"),
        ({"augment": {"recolor": {5: "#8FA65A"}}}, "augment.recolor changes classes, and a distillation knows none"),
        ({"rate": 1e30}, r"(loss|gradients) became (nan|inf) at step \d: lower the rate \(1e\+30\)$"),
    ],
)  # fmt: skip
def test_what_cannot_be_distilled_is_said(data: Path, tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    with pytest.raises((RequestError, ModelError), match=reason) as caught:
        distill(described(data, **changed), tmp_path, device="cpu")
    assert "\n" not in str(caught.value)


def test_the_command_distils(data: Path, tmp_path: Path, veca: Any) -> None:
    described(data)
    said = veca("distill", data / "distill.yaml", "--out", tmp_path / "run", "--device", "cpu", "--json")
    assert said.status == 0, said.err
    assert (tmp_path / "run" / "encoder" / "encoder.safetensors").is_file()
    assert "is no YAML" in veca("distill", tmp_path / "run" / "encoder" / "encoder.safetensors", "--out", tmp_path).line


def test_bands_are_measured_where_nobody_says_them(data: Path, tmp_path: Path) -> None:
    run = Distillation(described(data, bands=None), tmp_path, torch.device("cpu"), lambda _: None)
    assert isinstance(run.bands, Bands)
    assert 60 < np.mean(run.bands.mean) < 240
