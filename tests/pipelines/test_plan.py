"""Plans: never above the bound, never worse with more memory, and plain words where nothing fits."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.carry import WALKED, carried, needed_after, schedule
from pipelines.choices import choices, describe, table
from pipelines.device import _cgroup_free, choose_device, format_bytes, parse_bytes, resident
from pipelines.errors import RequestError
from pipelines.planner import BLOCKS, Pace, Plan, Reading, Wishes, core_choices, expected, make_plan, operations
from tiling import Box, Grid, Size, blocks
from veca_core.memory import Around, NetworkSize

NETWORK = NetworkSize(
    parameters=4_000_000, dim=192, hidden=512, heads=3, layers=6, patch=16, bands=3, classes=4,
    around=dict.fromkeys(itertools.product((2, 4), (True, False)), Around(stem=(400.0, -320.0), head=(320.0, -384.0))),
    operations=10_000.0, embeds=False,
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
    rows = choices(NETWORK, Size(5000, 5000), tuple(range(8, 65, 8)), {64: 0.8}, chosen, 512, Wishes())
    (row,) = [row for row in rows if row.chosen]
    assert (row.time, row.mean_iou, row.plan) == (1.0, 0.8, row.plan)
    by_cores = [r for r in rows if r.plan.window == 512]
    assert all(a.time >= b.time and a.plan.predicted >= b.plan.predicted for a, b in itertools.pairwise(by_cores))
    lines = table(rows)
    assert len(lines) == len(rows) + 1
    assert sum(line.startswith("->") for line in lines) == 1
    assert sum("not recorded" in line for line in lines) == sum(r.mean_iou is None for r in rows)


def grouped(root: Path, groups: dict[str, tuple[str, int, int]], names: tuple[str, str]) -> None:
    """Control groups as the kernel shows them: by folder their bound, bytes used, and bytes of those that are cache."""
    for name, (bound, used, cache) in groups.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / names[0]).write_text(f"{bound}\n")
        (root / name / names[1]).write_text(f"{used}\n")
        (root / name / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")


V1, V2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")


@pytest.mark.parametrize(
    ("names", "line", "none"),
    [(V2, "0::/slurm/job/step", "max"), (V1, "4:cpu,memory:/slurm/job/step", "9223372036854771712")],
)
def test_the_tightest_control_group_from_ones_own_up_to_the_root_counts(
    tmp_path: Path, names: tuple[str, str], line: str, none: str
) -> None:
    own, root = tmp_path / "cgroup", tmp_path / "root"
    own.write_text(f"9:name=systemd:/elsewhere\n{line}\n")
    roots = (root, tmp_path / "no") if names == V2 else (tmp_path / "no", root)
    none_set = {"slurm/job/step": (none, 9, 0), "slurm/job": (none, 9, 0), "other": ("5", 0, 0)}
    grouped(root, none_set, names)
    assert _cgroup_free(own, *roots) > 2**62
    grouped(root, {"slurm/job": ("1000", 700, 200), "slurm": ("2000", 900, 0)}, names)
    assert _cgroup_free(own, *roots) == 500, "what is cached of files goes back when it is needed"
    grouped(root, {"slurm": ("2000", 1900, 0)}, names)
    assert _cgroup_free(own, *roots) == 100, "neighbours in the group above use it up"
    grouped(root, {"slurm/job/step": ("300", 400, 0)}, names)
    assert _cgroup_free(own, *roots) == 0


def test_a_container_sees_its_own_bound_at_the_root(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/docker/0123\n")
    grouped(tmp_path / "root", {"": ("1000", 400, 0)}, V2)
    assert _cgroup_free(own, tmp_path / "root", tmp_path / "no") == 600
    assert _cgroup_free(tmp_path / "no", tmp_path / "root", tmp_path / "no") == 600
    assert _cgroup_free(tmp_path / "no", tmp_path / "no", tmp_path / "no") == 2**63


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an Apple GPU here")
def test_an_apple_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(RequestError, match="torch sees no Apple GPU here; write auto or cpu"):
        choose_device("mps")


LARGE_BANK = replace(NETWORK, embeds=True, around=dict.fromkeys(NETWORK.around, Around(stem=(3.0,), head=(1.0,))))
"""A network whose scores are what fills the memory of a CPU: so many cores are computed by a kernel of their own."""


def test_cores_are_given_up_before_the_window_where_that_saves_memory() -> None:
    size, budgets = Size(5000, 5000), (512, 1024, 256, 2048)
    wide = make_plan(LARGE_BANK, size, 2048, 512, Wishes(memory=2**34, device="cpu", budgets=budgets))
    assert (wide.cores, wide.window, wide.reason) == (2048, 512, "everything fits")
    tight = least_memory(wide) - 2**20
    plan = make_plan(LARGE_BANK, size, 2048, 512, Wishes(memory=tight, device="cpu", budgets=budgets))
    assert (plan.cores, plan.window) == (512, 512), "the most accurate of the smaller budgets"
    assert plan.reason.startswith("fewer cores, which saves memory here")
    pinned = make_plan(LARGE_BANK, size, 2048, 512, Wishes(cores=2048, memory=tight, device="cpu", budgets=budgets))
    assert (pinned.cores, pinned.window) == (2048, 256), "a pinned number of cores is kept"


def least_memory(plan: Plan) -> int:
    """A bound that is just enough for these cores and this window."""
    least = (replace(plan, block=block, chunk=plan.chunk // 4) for block in BLOCKS)
    return min(expected(one, LARGE_BANK, Size(5000, 5000), Reading()).predicted for one in least)


def test_the_chunk_is_given_up_first_for_it_costs_nothing() -> None:
    size = Size(5000, 5000)
    wide = make_plan(LARGE_BANK, size, 2048, 1024, Wishes(memory=2**34, device="cpu"))
    tight = make_plan(LARGE_BANK, size, 2048, 1024, Wishes(memory=wide.predicted - 1, device="cpu"))
    assert (wide.chunk, tight.chunk) == (2048, 512)
    assert tight == replace(wide, memory=wide.predicted - 1, predicted=tight.predicted, chunk=512, reason=tight.reason)
    assert tight.reason == "smaller chunks"


PACED = Wishes(memory=2**34, device="cpu", budgets=(48, 64, 8, 32))


def timed(seconds: float, **changed: int) -> Plan:
    """A plan under a bound on time, where all 64 cores take 100 s."""
    size = Size(5000, 5000)
    whole = make_plan(NETWORK, size, 64, 512, PACED)
    pace = Pace(operations(NETWORK, size, whole) / 200, share=0.5)
    return make_plan(NETWORK, size, 64, 512, replace(PACED, time=seconds, pace=pace, **changed))


def test_cores_are_given_up_for_time_in_the_order_of_their_accuracy() -> None:
    whole = timed(100.1)
    assert (whole.cores, whole.seconds, whole.reason) == (64, pytest.approx(100), "everything fits")
    plan = timed(99.9)
    assert (plan.cores, plan.window) == (48, 512), "48 cores are the most accurate of those that are quicker"
    assert plan.reason == "fewer cores, to be done in time"
    assert plan.seconds is not None
    quicker = timed(plan.seconds - 0.1)
    assert quicker.cores == 8, "the next in accuracy, though 32 would do"
    assert "and about 9" in describe(quicker)


def test_a_time_that_nothing_keeps_is_told_what_would() -> None:
    with pytest.raises(RequestError, match=r"10 s are not enough: the quickest plan \(8 cores, window ") as said:
        timed(10)
    allowed = float(str(said.value).rpartition("--time ")[2].rstrip("s"))
    assert timed(allowed).seconds <= allowed  # type: ignore[operator]
    with pytest.raises(RequestError, match=r"quickest plan \(64 cores, .*or leave out --cores"):
        timed(10, cores=64)


def test_a_cuda_device_gives_up_batch_before_block_and_counts_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2**30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (8 * 2**30, 24 * 2**30))
    size = Size(20_000, 20_000)
    plan = make_plan(NETWORK, size, 64, 512, Wishes(device="cuda"))
    assert (plan.device, plan.precision, plan.memory) == ("cuda", "bfloat16", int(0.8 * 10 * 2**30))
    assert (plan.batch, plan.chunk, plan.block, plan.window) == (16, 16384, 2048, 512)
    tight = make_plan(NETWORK, size, 64, 512, Wishes(device="cuda:0", memory=plan.predicted // 3))
    assert (tight.block, tight.window, tight.cores) == (2048, 512, 64)
    assert tight.batch < 16
    assert tight.predicted <= plan.predicted // 3
    assert "smaller batches" in tight.reason


def test_an_apple_gpu_computes_in_float32_with_plain_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 6 * 2**30)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2**30)
    plan = make_plan(NETWORK, Size(20_000, 20_000), 64, 512, Wishes(device="mps"))
    assert (plan.device, plan.precision, plan.memory) == ("mps", "float32", 4 * 2**30)
    assert plan.fits
    assert plan.host > plan.predicted, "it is the machine's memory that it takes"
    scores = replace(LARGE_BANK, classes=1)
    few, many = (
        expected(replace(plan, cores=c, window=1024, batch=1), scores, Size(9000, 9000), Reading()) for c in (8, 2048)
    )
    assert many.predicted > 1.5 * few.predicted, "scores are kept there, so that many cores cost memory"


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """A GPU with plenty, in a machine with so many bytes free."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr("pipelines.planner.free_memory", lambda device: free if device.type == "cpu" else 2**36)


def test_beside_a_gpu_the_machines_own_memory_is_planned_too(monkeypatch: pytest.MonkeyPatch) -> None:
    wishes = Wishes(device="cuda", reading=Reading(itemsize=2, beyond=2**28))
    on_a_gpu(monkeypatch, 2**36)
    wide = make_plan(NETWORK, Size(20_000, 20_000), 64, 1024, wishes)
    assert (wide.batch, wide.block) == (16, 2048)
    pixels = wide.window**2 * 3 * 2 * 2 * wide.batch
    assert wide.host > 2**28 + pixels, "the reader's bytes, and two batches of windows"
    assert "of this machine's memory" in describe(wide)
    on_a_gpu(monkeypatch, 10 * (wide.host - resident()) // 9)
    tight = make_plan(NETWORK, Size(20_000, 20_000), 64, 1024, wishes)
    assert tight.batch < 16
    assert tight.fits
    assert tight.host <= tight.host_memory < wide.host
    on_a_gpu(monkeypatch, 2**28)
    with pytest.raises(
        RequestError, match=r"of this machine's memory is not enough: the smallest plan .* beside cuda;"
    ):
        make_plan(NETWORK, Size(20_000, 20_000), 64, 1024, wishes)


def test_a_pinned_overlap_leaves_out_windows_that_cannot_have_it() -> None:
    size = Size(9000, 9000)
    least = make_plan(NETWORK, size, 64, 512, Wishes(window=256, overlap=128, memory=2**34, device="cpu")).predicted
    plan = make_plan(NETWORK, size, 64, 2048, Wishes(overlap=128, memory=least, device="cpu"))
    assert (plan.window, plan.overlap) == (256, 128)
    with pytest.raises(RequestError, match=r"the smallest plan \(window 256 px"):
        make_plan(NETWORK, size, 64, 2048, Wishes(overlap=128, memory=resident() + 2**27, device="cpu"))
    rows = choices(NETWORK, size, (8, 64), {}, plan, 2048, Wishes(overlap=128))
    assert {row.plan.window for row in rows} == {2048, 1024, 512, 256}, "from the model's own window on"
    assert {row.plan.overlap for row in rows} == {128}


@given(
    st.builds(Size, st.integers(1, 6000), st.integers(1, 6000)),
    st.sampled_from([128, 256, 512, 1024]),
    st.floats(0, 0.5),
    st.sampled_from(BLOCKS),
)
def test_what_is_counted_as_carried_is_what_is_kept_or_more_where_windows_are_many(
    size: Size, window: int, share: float, side: int
) -> None:
    grid = Grid.over(size, window, int(share * window), 16)
    kept: dict[tuple[Box, Box], int] = {}
    most = 0
    for step in schedule(grid, blocks(size, side), 3):
        kept |= {(step.window, part): part.pixels * (3 * 4 + 1) for part in step.keep if step.window}
        most = max(most, sum(kept.values()))
        if step.window is None:
            kept = {key: size for key, size in kept.items() if needed_after(key[1], step.block)}
    assert most <= carried(grid, side, 3) <= (most if len(grid) <= WALKED else max(2.1 * most, most + 2**20))


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
