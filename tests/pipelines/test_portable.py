"""A model in another runtime says what it says here, at every size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from pipelines.portable import export_model
from veca_core import Model, load_model

SHAPES = [(1, 64, 64), (3, 50, 77), (1, 1, 1), (2, 130, 96)]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(tiny_model)


def pixels(batch: int, height: int, width: int) -> NDArray[np.float32]:
    return np.random.default_rng(height).integers(0, 255, (batch, 3, height, width)).astype(np.float32)


def expected(model: Model, image: NDArray[np.float32], cores: int) -> NDArray[np.float32]:
    with torch.inference_mode():
        answer: NDArray[np.float32] = model.network(torch.from_numpy(image), cores).softmax(1).numpy()
    return answer


@pytest.mark.filterwarnings("ignore")
def test_onnx_says_the_same_for_every_budget_size_and_batch(model: Model, tmp_path: Path) -> None:
    paths = export_model(model, tmp_path, cores=[8, 64])
    assert [path.name for path in paths] == ["tiny-model-8-cores.onnx", "tiny-model-64-cores.onnx"]
    assert {p.name for p in tmp_path.iterdir()} == {path.name for path in paths}, "weights lie inside"
    answers = []
    for path, cores in zip(paths, (8, 64), strict=True):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for shape in SHAPES:
            image = pixels(*shape)
            (found,) = session.run(["probabilities"], {"pixels": image})
            np.testing.assert_allclose(found, expected(model, image, cores), atol=5e-6)
        answers.append(session.run(None, {"pixels": pixels(1, 64, 64)})[0])
        about = session.get_modelmeta().custom_metadata_map
        assert [c["name"] for c in json.loads(about["classes"])] == [c.name for c in model.card.classes]
        assert (about["cores"], json.loads(about["bands"])) == (str(cores), list(model.card.bands.names))
        assert (about["model"], about["digest"]) == ("tiny-model", model.digest)
    assert np.abs(answers[0] - answers[1]).max() > 2e-5, "the budgets differ"


@pytest.mark.filterwarnings("ignore")
def test_torch_export_says_the_same(model: Model, tmp_path: Path) -> None:
    (path,) = export_model(model, tmp_path, format="torch-export")
    assert path.name == "tiny-model-64-cores.pt2"
    extra = {"veca.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    for shape in [(1, 64, 64), (3, 50, 77), (2, 130, 96)]:
        image = pixels(*shape)
        with torch.inference_mode():
            found = program(torch.from_numpy(image)).numpy()
        np.testing.assert_allclose(found, expected(model, image, 64), atol=1e-5)
    assert json.loads(extra["veca.json"])["model"] == "tiny-model"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--format", "tflite"], "there is no format 'tflite'; the formats are onnx, torch-export"),
        (["--cores", "7"], "cannot run with 7 cores"),
        (["--cores", "many"], "cannot read 'many' as a number of cores"),
    ],
)
def test_a_wish_that_cannot_be_met_is_one_line(
    tiny_model: Path, tmp_path: Path, veca: Any, words: list[str], line: str
) -> None:
    said = veca("export", tiny_model, "--out", tmp_path / "out", *words)
    assert said.status == 2
    assert line in said.line
    assert not list((tmp_path / "out").glob("*.onnx"))
