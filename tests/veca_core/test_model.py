"""Models: logits of the input's size, a folder that holds all of it, and one plain line for what does not fit."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import LITE, card, network, pixels
from safetensors.torch import load_file

from veca_core import Card, ModelError, build, load_card, load_model, save_model, shipped_models
from veca_core.card import Architecture, Bands
from veca_core.weights import CARD, WEIGHTS, find_model

STEMS_AND_HEADS = [("patch", "linear"), ("patch", "unet"), (LITE, "unet"), ("resnet18", "linear")]


@pytest.mark.parametrize(("stem", "head"), STEMS_AND_HEADS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 33), (64, 48), (100, 7)])
def test_logits_have_the_size_of_the_input(stem: str, head: str, height: int, width: int) -> None:
    model = network(card(stem, head))
    with torch.no_grad():
        logits = model(pixels(height, width, batch=2), 16)
    assert logits.shape == (2, 4, height, width)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("stem", "head", "patch"), [("patch", "unet", 8), ("patch", "unet", 4), ("patch", "linear", 14), (LITE, "unet", 32)]
)
def test_other_patches_work_too(stem: str, head: str, patch: int) -> None:
    with torch.no_grad():
        assert network(card(stem, head, bands=5, patch=patch))(pixels(50, 70, 5), 8).shape == (1, 4, 50, 70)


@pytest.mark.parametrize(
    ("stem", "head", "encoder", "reason"),
    [
        ("patch", "pyramid", {}, "no head 'pyramid'; the heads are linear, unet"),
        ("resnet-none", "unet", {}, "the stem 'resnet-none' is no encoder"),
        ("tu-none", "unet", {}, "the stem 'tu-none' is no encoder"),
        (LITE, "unet", {"patch": 14}, "needs a patch of 4, 8, 16 or 32 px, got 14"),
        ("patch", "unet", {"patch": 2}, "unet"),
        ("patch", "unet", {"patch": 64}, "unet"),
        ("patch", "linear", {"heads": 0}, "heads must be"),
        ("patch", "linear", {"depth": 3}, "encoder settings do not fit.*depth"),
    ],
)
def test_parts_that_do_not_exist_are_refused(stem: str, head: str, encoder: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        network(card(stem, head, **encoder))


def test_raw_pixels_of_any_type_are_normalised_the_same() -> None:
    model, raw = network(card()), pixels(32, 48)
    with torch.no_grad():
        expected = model(raw)
        for dtype in (torch.int16, torch.int32, torch.int64, torch.float32, torch.float64):
            assert torch.equal(model(raw.to(dtype)), expected)


def test_normalisation_is_by_band() -> None:
    described = card(bands=2)
    spread = described.model_copy(update={"bands": Bands(names=("a", "b"), mean=(0.0, 100.0), std=(1.0, 50.0))})
    one, other = network(described), network(spread)
    raw = torch.rand(1, 2, 32, 32) * 255
    mean, std = torch.tensor([0.0, 100.0]).view(1, 2, 1, 1), torch.tensor([1.0, 50.0]).view(1, 2, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(other(raw), one((raw - mean) / std * 60 + 120), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("stem", "head"), STEMS_AND_HEADS)
def test_a_saved_model_comes_back(tmp_path: Path, dtype: torch.dtype, stem: str, head: str) -> None:
    described = card(stem, head)
    model = network(described)
    save_model(tmp_path / "m", model, described, dtype)
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [CARD, WEIGHTS]
    loaded = load_model(tmp_path / "m")
    assert loaded.card == described
    assert not loaded.network.training
    for name, value in model.state_dict().items():
        kept = loaded.network.state_dict()[name]
        assert kept.dtype == value.dtype
        assert torch.equal(kept, value.to(dtype).to(value.dtype) if value.is_floating_point() else value)
    with torch.no_grad():
        got, expected = loaded.network(pixels(40, 50)), model(pixels(40, 50))
    torch.testing.assert_close(got, expected, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0)


def test_numbers_that_float16_does_not_hold_are_saved_as_they_are(tmp_path: Path) -> None:
    described = card(head="linear")
    model = network(described)
    norm: Any = model.head
    norm.norm.running_var.fill_(1e6)
    save_model(tmp_path, model, described, torch.float16)
    assert torch.equal(load_model(tmp_path).network.state_dict()["head.norm.running_var"], norm.norm.running_var)
    assert load_file(tmp_path / WEIGHTS)["head.classify.weight"].dtype == torch.float16


def test_the_digest_names_weights_and_card(tmp_path: Path) -> None:
    described = card()
    for name, seed, one in [("a", 0, described), ("b", 0, described), ("c", 1, described)]:
        save_model(tmp_path / name, network(one, seed), one)
    save_model(tmp_path / "d", network(described), described.model_copy(update={"window": 64}))
    a, b, c, d = (load_model(tmp_path / name).digest for name in "abcd")
    assert a == b
    assert len({a, c, d}) == 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    described = card()
    save_model(tmp_path / "model", network(described), described)
    return tmp_path / "model"


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as error:
        load_model(folder)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def test_a_missing_model_lists_what_there_is(tmp_path: Path) -> None:
    message = refused(tmp_path / "none")
    assert f"there is no model '{tmp_path / 'none'}': give a folder with model.json and model.safetensors" in message
    assert all(model.name in message for model in shipped_models())


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert f"{folder / WEIGHTS} is missing" in refused(folder)
    assert load_card(folder).name == "test-model"


def test_weights_of_another_network_are_refused(folder: Path, tmp_path: Path) -> None:
    for i, other in enumerate([card(dim=96, heads=6), card(layers=3), card(classes=2), card(head="unet")]):
        save_model(tmp_path / str(i), network(other), other)
        (folder / WEIGHTS).write_bytes((tmp_path / str(i) / WEIGHTS).read_bytes())
        assert "the weights do not fit their sizes" in refused(folder)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_in_place_of_weights_is_refused_and_never_run(folder: Path) -> None:
    trap = folder / "sprung"
    torch.save({"weights": Trap(trap)}, folder / WEIGHTS)
    assert "cannot be read as safetensors" in refused(folder)
    (folder / WEIGHTS).write_bytes(pickle.dumps(Trap(trap)))
    assert "cannot be read as safetensors" in refused(folder)
    assert not trap.exists()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from([WEIGHTS, CARD]), st.floats(0, 1), st.integers(1, 200), st.booleans())
def test_damage_is_refused_or_harmless_but_never_breaks(
    folder: Path, name: str, place: float, length: int, cut: bool
) -> None:
    before = (folder / name).read_bytes()
    content = bytearray(before)
    start = int(place * (len(content) - 2))  # the card's closing newline may be lost without harm
    damaged = bytes(255 - b for b in content[start : start + length])
    content[start:] = b"" if cut else damaged + content[start + length :]
    (folder / name).write_bytes(content)
    try:
        if cut:
            refused(folder)
        else:
            load_model(folder)
    except ModelError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either way is right, breaking is not
    finally:
        (folder / name).write_bytes(before)


def changed_card(folder: Path, **changed: Any) -> None:
    content = json.loads((folder / CARD).read_text(encoding="utf-8"))
    (folder / CARD).write_text(json.dumps({**content, **changed}), encoding="utf-8")


GOOD = {"value": 0, "name": "a", "color": "#000000"}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"format": "veca-model/2"}, "format: Input should be 'veca-model/1'"),
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"name": "../up"}, "name: "),
        ({"classes": []}, "a model needs at least one class"),
        ({"classes": [GOOD, {**GOOD, "name": "b"}]}, "two classes share a value"),
        ({"classes": [GOOD, {**GOOD, "value": 1}]}, "two classes share a name"),
        ({"classes": [{**GOOD, "value": 255}]}, "classes.0.value"),
        ({"classes": [{**GOOD, "color": "red"}]}, "a colour is written #RRGGBB, got 'red'"),
        ({"classes": [GOOD]}, "the weights do not fit"),
        ({"bands": {"names": ["x"], "mean": [1, 2], "std": [1]}}, "one name, one mean and one std each"),
        ({"bands": {"names": ["x"] * 3, "mean": [1] * 3, "std": [1, 0, 1]}}, "deviations positive"),
        ({"bands": {"names": ["x"], "mean": [1], "std": [1]}}, "in_channels and the 1 named bands differ"),
        ({"spacing": {"value": 0, "unit": "um"}}, "spacing.value"),
        ({"spacing": {"value": 1, "unit": "ft"}}, "spacing.unit"),
        ({"window": 0}, "window"),
        ({"architecture": {"encoder": {"dim": 48}}}, "encoder settings do not fit"),
        ({"architecture": {"encoder": {"dim": 48, "layers": 2, "heads": 0}}}, "heads must be"),
        ({"architecture": {"encoder": {"dim": 48, "layers": 2, "heads": 3}, "head": "x"}}, "no head 'x'"),
    ],
)
def test_a_wrong_card_is_refused_and_says_where(folder: Path, changed: dict[str, Any], reason: str) -> None:
    changed_card(folder, **changed)
    assert reason in refused(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe\x00", b'{"name": "a"}'])
def test_what_is_no_card_is_refused(folder: Path, content: bytes) -> None:
    (folder / CARD).write_bytes(content)
    assert str(folder / CARD) in refused(folder)


def test_a_card_tells_its_colours_and_scores() -> None:
    described = card()
    assert described.classes[3].rgb == (0, 0, 3)
    score = described.score(8)
    assert score is not None
    assert score.mean_iou == 0.5
    assert described.score(16) is None
    assert Card.model_validate_json(described.model_dump_json()) == described


def test_shipped_models_are_found_by_name(folder: Path) -> None:
    assert find_model(folder) == folder
    for shipped in shipped_models():
        assert find_model(shipped.name) == shipped


def test_an_architecture_builds_what_it_says() -> None:
    architecture = Architecture(encoder={"dim": 48, "layers": 3, "heads": 3, "budget_weights": [1, 2]}, head="linear")
    model = build(architecture, Bands(names=("a", "b", "c"), mean=(0, 0, 0), std=(1, 1, 1)), 7)
    assert model.classes == 7
    assert len(model.encoder.blocks) == 3
    assert model.encoder.config.budget_weights == (1, 2)
