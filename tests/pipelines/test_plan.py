"""Plans: never above the bound, never worse with more memory, and plain words where nothing fits."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import RequestError
from pipelines.plan import (
    BLOCKS,
    Plan,
    Wishes,
    choices,
    choose_device,
    core_choices,
    format_bytes,
    make_plan,
    parse_bytes,
    predict,
    table,
)
from tiling import Grid, Size
from veca_core.memory import NetworkSize

NETWORK = NetworkSize(
    parameters=4_000_000, dim=192, hidden=512, heads=3, layers=6, patch=16, bands=3, classes=4, widest=100.0,
    skips=20.0, operations=10_000.0, embeds=False,
)  # fmt: skip
SIZES = st.builds(Size, st.integers(1, 100_000), st.integers(1, 100_000))
MEMORY = st.integers(2**26, 2**36)


def planned(size: Size, memory: int, **wishes: int | None) -> tuple[int, int] | None:
    """Block and window, or None where nothing fits."""
    try:
        plan = make_plan(NETWORK, size, 64, 512, Wishes(memory=memory, device="cpu", **wishes))
    except RequestError as error:
        assert "is not enough: the smallest plan" in str(error)  # noqa: PT017 - either is right
        return None
    assert plan.predicted <= plan.memory == memory
    assert plan.block in BLOCKS
    assert (plan.cores, plan.device, plan.batch) == (wishes.get("cores") or 64, "cpu", 1)
    Grid.over(size, plan.window, plan.overlap, NETWORK.patch)
    return plan.window, plan.block


@given(SIZES, MEMORY, st.sampled_from([None, 8, 32]))
def test_a_plan_keeps_to_its_memory_and_makes_a_grid(size: Size, memory: int, cores: int | None) -> None:
    planned(size, memory, cores=cores)


@given(SIZES, MEMORY, MEMORY)
def test_more_memory_never_gives_a_smaller_window_or_block(size: Size, one: int, other: int) -> None:
    less, more = planned(size, min(one, other)), planned(size, max(one, other))
    if less is not None:
        assert more is not None
        assert more >= less


def test_what_the_user_pins_is_kept() -> None:
    plan = make_plan(
        NETWORK, Size(5000, 5000), 64, 512, Wishes(cores=16, window=100, overlap=7, memory=2**34, device="cpu")
    )
    assert (plan.cores, plan.window, plan.overlap) == (16, 100, 7)
    assert "fewer cores, as asked" in plan.reason
    assert "another window than the model's own" in plan.reason
    free = make_plan(NETWORK, Size(5000, 5000), 64, 512, Wishes(memory=2**34, device="cpu"))
    assert (free.cores, free.window, free.overlap, free.reason) == (64, 512, 64, "everything fits")


@pytest.mark.parametrize(
    ("text", "count"),
    [("6GiB", 6 * 2**30), ("800M", 800 * 2**20), ("1.5 GB", 3 * 2**29), ("64", 64), ("2kb", 2048), (" 1 TiB ", 2**40)],
)
def test_amounts_of_memory_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "0", "six", "-1G", "1 GiBs", "1e9", "1,5G", "0.0001", "G", "1XB"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="write a number and a unit, like 6GiB"):
        parse_bytes(text)


@given(st.integers(1, 2**50))
def test_amounts_are_told_as_they_are_read(count: int) -> None:
    told = parse_bytes(format_bytes(count)) if count >= 2**20 else count
    assert told == pytest.approx(count, rel=0.51 if count < 2**30 else 0.06)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "CPU", "mps:0", "", "cuda:-1"])
def test_a_device_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="write auto, cpu, cuda or cuda:1"):
        choose_device(name)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(RequestError, match=f"torch sees {torch.cuda.device_count()} CUDA devices"):
        choose_device(f"cuda:{torch.cuda.device_count()}")


def test_choices_show_what_fewer_cores_and_smaller_windows_would_give() -> None:
    chosen = make_plan(NETWORK, Size(5000, 5000), 64, 512, Wishes(memory=2**34, device="cpu"))
    rows = choices(NETWORK, Size(5000, 5000), tuple(range(8, 65, 8)), {64: 0.8}, chosen)
    (row,) = [row for row in rows if row.chosen]
    assert (row.time, row.mean_iou, row.plan) == (1.0, 0.8, row.plan)
    by_cores = [r for r in rows if r.plan.window == 512]
    assert all(a.time >= b.time and a.plan.predicted >= b.plan.predicted for a, b in itertools.pairwise(by_cores))
    lines = table(rows)
    assert len(lines) == len(rows) + 1
    assert sum(line.startswith("->") for line in lines) == 1
    assert sum("not recorded" in line for line in lines) == sum(r.mean_iou is None for r in rows)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an Apple GPU here")
def test_an_apple_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(RequestError, match="torch sees no Apple GPU here; write auto or cpu"):
        choose_device("mps")


LARGE_BANK = replace(NETWORK, embeds=True, widest=1.0, skips=0.0)
"""A network whose scores are what fills the memory of a CPU: so many cores are computed by a kernel of their own."""


def test_cores_are_given_up_before_the_window_where_that_saves_memory() -> None:
    size, budgets = Size(5000, 5000), (512, 1024, 256, 2048)
    wide = make_plan(LARGE_BANK, size, 2048, 512, Wishes(memory=2**34, device="cpu", budgets=budgets))
    assert (wide.cores, wide.window, wide.reason) == (2048, 512, "everything fits")
    smallest_block = predict(LARGE_BANK, size, 512, 1, 2048, 512, torch.device("cpu"))
    tight = replace_memory(wide, smallest_block - 2**20)
    plan = make_plan(LARGE_BANK, size, 2048, 512, Wishes(memory=tight, device="cpu", budgets=budgets))
    assert (plan.cores, plan.window) == (512, 512), "the most accurate of the smaller budgets"
    assert plan.reason.startswith("fewer cores, which saves memory here")
    pinned = make_plan(LARGE_BANK, size, 2048, 512, Wishes(cores=2048, memory=tight, device="cpu", budgets=budgets))
    assert (pinned.cores, pinned.window) == (2048, 256), "a pinned number of cores is kept"


def replace_memory(plan: Plan, forward: int) -> int:
    """A bound that leaves so many bytes beside what the process of this test holds."""
    held = plan.predicted - predict(
        LARGE_BANK, Size(5000, 5000), plan.window, 1, plan.cores, plan.block, torch.device("cpu")
    )
    return held + forward


def test_few_cores_are_no_choice_where_they_save_nothing() -> None:
    small = replace(NETWORK, embeds=True)
    choices_of = core_choices(small, Size(5000, 5000), 512, 64, Wishes(budgets=(64, 32, 8)), torch.device("cpu"))
    assert choices_of == [64]


def test_a_pinned_window_that_does_not_fit_is_told_which_one_would() -> None:
    size = Size(9000, 9000)
    least = make_plan(NETWORK, size, 64, 512, Wishes(window=128, memory=2**34, device="cpu"))
    bound = least.predicted + 2**27
    with pytest.raises(
        RequestError, match=r"window 4096 px, batch 1\) needs .* --memory \d+MiB, or --window \d+"
    ) as said:
        make_plan(NETWORK, size, 64, 512, Wishes(window=4096, memory=bound, device="cpu"))
    window = int(str(said.value).rpartition(" ")[2])
    assert make_plan(NETWORK, size, 64, 512, Wishes(window=window, memory=bound, device="cpu")).predicted <= bound
