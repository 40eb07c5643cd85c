"""Each step of `veca doctor` on a CPU, and that it fails where something is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from pipelines import doctor as clinic
from pipelines import gauge as gauges
from pipelines.errors import RequestError
from pipelines.gauge import GaugeError
from pipelines.known import KNOWN, known_network, known_picture
from veca_core import VecaEncoder, shipped_models

sys.path.append(str(Path(__file__).parents[1] / "veca_core"))
from reference import plain_forward

if TYPE_CHECKING:
    from conftest import Veca

CPU = torch.device("cpu")
PUBLISHED = (
    ("stem.", "patch_embed."), ("norm_attention", "norm_attn"), ("attention.out", "attn.out_proj"), ("mlp.fc", "fc"),
    ("norm_mlp", "norm_ffn"), ("moves.", "pos_linears."), ("move_rates", "pos_alpha"),
)  # fmt: skip


def only(step: clinic.Step, device: torch.device = CPU) -> clinic.Check:
    (check,) = step(device)
    return check


def published(encoder: VecaEncoder) -> dict[str, Any]:
    """An encoder as a published checkpoint."""
    state: dict[str, Tensor] = {}
    config = encoder.config
    for name, value in encoder.state_dict().items():
        if name.startswith("bank."):
            theirs = {"bank.tokens": "query_token_chunks", "bank.coordinates": "qcoord_chunks"}[name]
            state |= {f"{theirs}.{j}": part[None] for j, part in enumerate(value.split(config.core_chunk))}
        elif ".qkv." in name:
            parts = zip("qkv", value.chunk(3), strict=True)
            state |= {name.replace("attention.qkv", f"attn.{letter}_proj"): part for letter, part in parts}
        else:
            for ours, other in PUBLISHED:
                name = name.replace(ours, other)
            state[f"final_{name}" if name.startswith("norm.") else name] = value
    sizes = {
        "hidden_dim": config.dim, "num_layers": config.layers, "num_heads": config.heads, "patch_size": config.patch,
        "num_query_tokens": config.cores, "nested_chunk_size": config.core_chunk, "patch_embed_use_ln": False,
        "distill_output_dim": None, "rope_p_zero_freqs": config.rope_off, "rope_zero_freqs_from": config.rope_off_from,
    }  # fmt: skip
    return {"student": state, "config": sizes}


def test_the_known_answers_are_those_of_the_plainly_written_equations() -> None:
    checkpoint = published(known_network())
    for cores, known in KNOWN.items():
        bank, patches = plain_forward(checkpoint, known_picture()[0], cores)
        assert known == pytest.approx((*bank[0, :4], *patches[-1, -4:]), abs=1e-6)


def test_facts_say_what_there_is() -> None:
    versions, device, kernels = clinic.facts(CPU)
    assert f"torch {torch.__version__.partition('+')[0]}" in versions.said
    assert device.said.startswith("cpu (")
    assert f"{torch.get_num_threads()} threads" in device.said
    assert "float32" in kernels.said or "bfloat16" in kernels.said


@pytest.mark.parametrize("step", [clinic.known_answers, clinic.parity])
def test_the_device_agrees_with_the_plain_equations(step: clinic.Step) -> None:
    check = only(step)
    assert check.passed, check.said


@pytest.mark.parametrize("name", [name for name, _ in known_network().named_parameters()])
def test_a_wrong_weight_is_noticed_whichever_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = known_network()
    with torch.no_grad():
        damaged.get_parameter(name).view(-1)[0] += 1
    monkeypatch.setattr(clinic, "known_network", lambda: damaged)
    assert only(clinic.known_answers).passed is False


def test_a_device_that_computes_something_else_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = VecaEncoder.stream

    def wrong(self: VecaEncoder, *args: object) -> tuple[Tensor, Tensor]:
        cores, patches = right(self, *args)  # type: ignore[arg-type]
        return cores, patches + 2e-4

    monkeypatch.setattr(VecaEncoder, "stream", wrong)
    assert only(clinic.parity).passed is False
    assert only(clinic.known_answers).passed is False


def test_a_device_that_gives_what_is_no_number_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = VecaEncoder.stream

    def wrong(self: VecaEncoder, *args: object) -> tuple[Tensor, Tensor]:
        cores, patches = right(self, *args)  # type: ignore[arg-type]
        return cores * torch.nan, patches

    monkeypatch.setattr(VecaEncoder, "stream", wrong)
    assert only(clinic.parity).passed is False
    monkeypatch.setattr(VecaEncoder, "stream", right)
    monkeypatch.setattr(clinic, "sample", lambda *_: [KNOWN[8][0], *[float("nan")] * (len(KNOWN[8]) - 1)])
    monkeypatch.setattr(clinic, "KNOWN", {8: KNOWN[8]})
    assert only(clinic.known_answers).passed is False


def test_every_shipped_model_says_what_it_says_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = list(clinic.agreement(CPU))
    assert [c.name for c in checks] == [f"model {folder.name}" for folder in shipped_models()]
    assert all(check.passed for check in checks), [check.said for check in checks]
    monkeypatch.setattr(clinic, "SHIFT", -1.0)
    assert all(check.passed is False for check in clinic.agreement(CPU))


def test_the_predicted_peak_of_the_encoder_is_judged_by_the_measured_one(monkeypatch: pytest.MonkeyPatch) -> None:
    measured, low = clinic.gauge, [2**20]
    monkeypatch.setattr(clinic, "gauge", lambda *asked: low.pop() if low else measured(*asked))
    check = only(clinic.encoder_memory)
    assert check.passed, check.said
    assert not low, "a first reading, while the system took memory back, was too low"
    monkeypatch.setattr(clinic, "gauge", lambda *_: 2**30)
    assert only(clinic.encoder_memory).passed is False
    monkeypatch.setattr(clinic, "gauge", lambda *_: 2**20)
    assert only(clinic.encoder_memory).passed is False


def test_a_shipped_model_needs_no_more_than_is_planned_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clinic, "shipped_models", lambda: shipped_models()[:1])
    check = only(clinic.plan_memory)
    assert check.passed, check.said
    monkeypatch.setattr(clinic, "gauge", lambda *_: 2**30)
    assert only(clinic.plan_memory).passed is False


def test_speed_is_told_for_each_budget_and_fails_for_what_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    monkeypatch.setattr(clinic, "drawn_picture", lambda *_: pixels)
    checks = list(clinic.throughput(CPU))
    assert [check.name for check in checks] == [f"speed with {cores} cores" for cores in (8, 32, 64)]
    assert all(check.passed and "megapixels a second" in check.said for check in checks)
    damaged = clinic.drawn("tiny", CPU, layers=1)
    with torch.no_grad():
        damaged.norm.bias.fill_(torch.nan)
    monkeypatch.setattr(clinic, "drawn", lambda *_: damaged)
    assert all(check.passed is False for check in clinic.throughput(CPU))


def test_pictures_and_weights_are_always_the_same_and_leave_the_seed_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two = clinic.drawn("tiny", CPU, layers=1), clinic.drawn("tiny", CPU, layers=1)
    assert torch.equal(clinic.drawn_picture(20, 30), clinic.drawn_picture(20, 30))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory\ntried"), GaugeError("out of memory")])
def test_a_step_that_the_device_breaks_is_a_failed_check(error: Exception) -> None:
    def broken(_: torch.device) -> Iterator[clinic.Check]:
        yield clinic.Check("a", "b")
        raise error

    fact, failed = clinic.judged("memory", broken, CPU)
    assert (fact.passed, failed.passed, failed.name) == (None, False, "memory")
    assert failed.said == f"stopped with {type(error).__name__}: out of memory"


def test_a_measuring_process_that_fails_says_why() -> None:
    with pytest.raises(GaugeError, match="nowhere"):
        gauges.gauge(CPU, "nowhere", 64)


def test_the_command_prints_a_line_each_and_fails_with_status_1(veca: Veca, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clinic, "STEPS", {"facts": clinic.facts, "known answers": clinic.known_answers})
    said = veca("doctor", "--device", "cpu")
    assert said.status == 0
    assert [line[:4] for line in said.out.splitlines()] == ["    "] * 3 + ["pass"]
    damaged = known_network()
    with torch.no_grad():
        damaged.blocks[1].mlp.fc2.weight[0, 0] += 0.1  # type: ignore[union-attr, index, operator]
    monkeypatch.setattr(clinic, "known_network", lambda: damaged)
    said = veca("doctor", "--device", "cpu", "--json")
    assert said.status == 1
    assert [row["passed"] for row in json.loads(said.out)] == [None, None, None, False]
    assert said.line.endswith("1 of 4 checks failed: known answers")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused_in_one_line(veca: Veca) -> None:
    said = veca("doctor", "--device", "cuda")
    assert (said.status, said.out) == (2, "")
    assert said.line.endswith("cuda was asked for, but torch sees 0 CUDA devices")
    with pytest.raises(RequestError, match="write auto, cpu, cuda or cuda:1"):
        clinic.doctor("gpu")
