"""A cluster gives what one process gives, to the byte, whatever happens to its workers; and says what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
import tifffile
import torch
from clusters import ANOTHER_VERSION, DEADLY, OUT_OF_MEMORY, PATIENCE, WITHOUT_VECA, Cluster, cluster, program, wait_for
from distributed import Client, KilledWorker
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from places import model, seeded_network

from pipelines import Bundle, Options, segment, segment_all
from pipelines.crew import Crew, _folders
from pipelines.desk import Desk, Task, _is_excused
from pipelines.distribute import AHEAD, Team, cut, hire
from pipelines.errors import RequestError
from pipelines.progress import quiet
from pipelines.segmentation import Failure
from pipelines.worker import ModelTicket, NotJoinedError, Piece, _Floor, joined
from tiling import ImageError, Size
from tiling.grid import blocks
from veca_core import Model, load_model, save_model

if TYPE_CHECKING:
    from conftest import Veca

VECA = Path(sys.executable).with_name("veca")
PLAIN = Options(device="cpu", exports=("mask", "areas", "preview", "probability", "uncertainty"))


def test_workers_are_asked_only_about_folders_that_are_seen_here(tmp_path: Path) -> None:
    assert _folders([tmp_path / "a.png", tmp_path / "gone" / "b.png", "s3://bucket/c.tif"]) == (str(tmp_path),)


def test_a_model_that_other_runs_displaced_is_loaded_again(used: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = ModelTicket(str(used.folder), used.digest)
    with pytest.raises(NotJoinedError, match="was not asked yet whether it fits this run"):
        joined(ticket, "cpu")
    monkeypatch.setattr("pipelines.worker._JOINED", {(used.digest, "cpu")})
    first = joined(ticket, "cpu")
    assert joined(ticket, "cpu") is first
    monkeypatch.setattr("pipelines.worker._MODELS", {})
    assert joined(ticket, "cpu").digest == first.digest
    monkeypatch.setattr("pipelines.worker._MODELS", {})
    with pytest.raises(NotJoinedError, match="has lost the model"):
        joined(ModelTicket("nowhere", used.digest), "cpu")


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model folder with random weights, window 128 px."""
    card = model().card
    card = card.model_copy(update={"name": "random", "classes": card.classes[:5], "window": 128})
    folder = tmp_path_factory.mktemp("model") / "random"
    save_model(folder, seeded_network(card), card)
    return load_model(folder)


def write_scene(path: Path, height: int, width: int, seed: int = 0) -> Path:
    """A picture of patches that a random network tells apart."""
    cells = np.random.default_rng(seed).integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    pixels = cells.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    Image.fromarray(pixels).save(path, compress_level=1)
    return path


def write_damaged(path: Path) -> Path:
    """600 x 600 px in tiles, of which one cannot be decoded."""
    pixels = np.random.default_rng(9).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    tifffile.imwrite(path, pixels, tile=(256, 256), compression="zlib", photometric="rgb")
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[4], file.pages[0].databytecounts[4]
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"?" * count)
    return path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1100 x 1500 px, so 9 blocks of 512 px."""
    return write_scene(tmp_path_factory.mktemp("scene") / "scene.png", 1100, 1500)


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler and two workers, as separate programs."""
    with cluster(tmp_path_factory.mktemp("cluster")) as started:
        for _ in range(2):
            started.add("--nthreads", 1)
        with client(started) as looking:
            looking.wait_for_workers(2, timeout=PATIENCE)
        yield started


@contextlib.contextmanager
def client(of: Cluster) -> Iterator[Client]:
    with Client(scheduler_file=str(of.file), timeout=PATIENCE) as looking:
        yield looking


@pytest.fixture(scope="module")
def local(scene: Path, used: Model, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The scene, segmented by this process."""
    return segment_here(scene, used, tmp_path_factory.mktemp("local"))


def segment_here(scene: Path, used: Model, out: Path) -> Bundle:
    """By this process, in the small blocks that a cluster is given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.planner.BLOCKS", (512,))
        return segment(scene, used, out, PLAIN)


def content(bundle: Bundle) -> dict[str, bytes]:
    """Every file of a result but its story."""
    files = [path for path in bundle.folder.rglob("*") if path.is_file() and path.name != "run.json"]
    return {str(path.relative_to(bundle.folder)): path.read_bytes() for path in files}


def on(where: Cluster, **changed: object) -> Options:
    return replace(PLAIN, dask=str(where.file), **changed)  # type: ignore[arg-type]


def test_workers_started_by_hand_give_the_bytes_of_a_local_run(
    workers: Cluster, scene: Path, used: Model, local: Bundle, tmp_path: Path
) -> None:
    said = list[str]()
    bundle = segment(scene, used, tmp_path, on(workers), report=said.append)
    assert {"mask.tif", "areas.csv", "labels.zarr/zarr.json", "labels.zarr/0/c/2/2"} <= content(bundle).keys()
    assert len(np.unique(bundle.labels().read(bundle.labels().size.box))) > 2
    assert content(bundle) == content(local)
    assert bundle.run.fingerprint == local.run.fingerprint
    assert bundle.run.blocks == 9
    assert [path.name for path in tmp_path.iterdir()] == ["scene"]
    assert any("2 workers take part" in line for line in said)
    # And what is finished there is finished here.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.planner.BLOCKS", (512,))
        segment(scene, used, tmp_path, PLAIN, report=said.append)
    assert "holds this very result already" in said[-1]


def test_a_model_is_loaded_once_a_worker(workers: Cluster, scene: Path, used: Model, tmp_path: Path) -> None:
    def loaded() -> list[int]:
        from pipelines.worker import _MODELS

        return [id(loaded) for loaded in _MODELS.values()]

    segment(scene, used, tmp_path / "a", on(workers))
    with client(workers) as looking:
        before = looking.run(loaded)
        segment(scene, used, tmp_path / "b", on(workers))
        assert looking.run(loaded) == before
        assert [len(models) for models in before.values()] == [1, 1]


def test_a_worker_uses_the_threads_it_is_told(workers: Cluster, scene: Path, used: Model, tmp_path: Path) -> None:
    with client(workers) as looking:
        for threads in (None, 3):
            segment(scene, used, tmp_path / str(threads), on(workers, threads=threads))
            asked = [looking.submit(torch.get_num_threads, workers=[w], pure=False) for w in looking.nthreads()]
            assert {future.result() for future in asked} == {threads or 1}


def test_a_worker_that_is_killed_in_mid_run_changes_nothing(
    workers: Cluster, scene: Path, used: Model, local: Bundle, tmp_path: Path
) -> None:
    said, killed = list[str](), list[int]()
    with client(workers) as looking:

        def kill(done: int, total: int) -> None:
            if 0 < done < total and not killed:
                (pid, *_) = looking.run(os.getpid).values()
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

        bundle = segment(scene, used, tmp_path, on(workers), report=said.append, tick=kill)
        assert killed
        assert content(bundle) == content(local)
        # Its nanny starts another, which is asked before it gets work.
        looking.wait_for_workers(2, timeout=PATIENCE)
        assert killed[0] not in looking.run(os.getpid).values()
    again = segment(scene, used, tmp_path / "again", on(workers))
    assert content(again) == content(local)


def test_images_are_interleaved_and_one_that_fails_ends_nothing(
    workers: Cluster, used: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [write_scene(tmp_path / f"{i}.png", 530, 700 + i, seed=i) for i in range(6)]
    cut_short = tmp_path / "short.png"
    cut_short.write_bytes(images[0].read_bytes()[:9000])
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    images[2:2] = [cut_short, tmp_path / "text.png"]
    images.append(write_damaged(tmp_path / "damaged.tif"))
    spans, ticks, tasks = list[tuple[float, float]](), list[tuple[int, int]](), list[int]()
    fill = Team.fill

    def timed(self: Team, *arguments: object) -> object:
        started = time.monotonic()
        try:
            return fill(self, *arguments)  # type: ignore[arg-type]
        finally:
            spans.append((started, time.monotonic()))

    monkeypatch.setattr(Team, "fill", timed)
    with client(workers) as looking:

        def tick(done: int, total: int) -> None:
            ticks.append((done, total))
            tasks.append(looking.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))

        results = segment_all(images, used, tmp_path / "out", on(workers), tick=tick)
    assert [type(result) for result in results] == [Bundle] * 2 + [Failure] * 2 + [Bundle] * 5
    assert all("short.png" in r.reason or "text.png" in r.reason for r in results if isinstance(r, Failure))
    assert (tmp_path / "out" / "summary.csv").read_text(encoding="utf-8").count("\n") == 10
    assert sum(result.run.blocks for result in results if isinstance(result, Bundle)) == 28
    assert max(done for done, _ in ticks) >= 28, "all images are counted together, also what was done of one that fails"
    # Images are under way together, and yet few of their 28 pieces and 21 other tasks are in flight at once.
    assert max(sum(start < at < end for start, end in spans) for at in (end - 1e-6 for _, end in spans)) > 1
    assert max(tasks) <= AHEAD * 2 + 8
    monkeypatch.setattr("pipelines.planner.BLOCKS", (512,))
    for image, result in zip(images, results, strict=True):
        if isinstance(result, Bundle):
            alone = segment(image, used, tmp_path / "local", PLAIN)
            assert content(result) == content(alone)
            assert set(result.run.damage) == set(alone.run.damage)
            assert bool(alone.run.damage) == (image.name == "damaged.tif")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fills with a number for each piece that is done: that of its image."""
    done, ask = list[int](), Desk.ask

    def recorded(self: Desk, tasks: Iterable[Task], *, gated: bool = True) -> Iterator[object]:
        for answer in ask(self, tasks, gated=gated):
            if isinstance(answer, Piece):
                done.append(-self.priority)
            yield answer

    monkeypatch.setattr(Desk, "ask", recorded)
    return done


def test_pieces_of_a_second_image_are_done_before_the_last_of_the_first(
    workers: Cluster, used: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[int]
) -> None:
    monkeypatch.setattr("pipelines.distribute.SIDES", ())
    images = [write_scene(tmp_path / f"{i}.png", 1500, 2000, seed=i) for i in range(2)]
    assert all(isinstance(r, Bundle) for r in segment_all(images, used, tmp_path / "out", on(workers)))
    assert sorted(answers) == [1] * 12 + [2] * 12
    last_of_the_first = max(at for at, image in enumerate(answers) if image == 1)
    assert answers.index(2) < last_of_the_first, answers


def test_blocks_count_before_their_piece_is_done(
    workers: Cluster,
    scene: Path,
    used: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: list[int],
) -> None:
    monkeypatch.setattr("pipelines.distribute.SPREAD", 0)
    ticks = list[tuple[int, int]]()
    segment(scene, used, tmp_path, on(workers), tick=lambda done, _: ticks.append((done, len(answers))))
    assert answers == [1], "one piece of nine blocks"
    assert len({done for done, pieces in ticks if 0 < done < 9 and not pieces}) > 3


def test_a_run_that_is_interrupted_or_killed_takes_its_work_back_and_goes_on_from_there(
    workers: Cluster, used: Model, tmp_path: Path
) -> None:
    # 42 blocks: workers that are warm finish a few faster than one can interrupt them.
    (tmp_path / "large").mkdir()
    scene = write_scene(tmp_path / "large" / "scene.png", 2600, 3100)
    words = (VECA, "segment", scene, "-m", used.folder, "-o", tmp_path, "--dask", workers.file, "--device", "cpu")
    words += ("--exports", ",".join(PLAIN.exports))
    log, journal = tmp_path / "log.txt", tmp_path / "scene" / "labels.zarr.partial" / "journal.txt"

    def blocks_done() -> int:
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    with client(workers) as looking, program(*words, folder=tmp_path, log=log) as run:
        wait_for(lambda: blocks_done() >= 2)
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(PATIENCE) == 130
        wait_for(lambda: not looking.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))
    said = log.read_text(encoding="utf-8")
    assert said.strip().splitlines()[-1].endswith("veca: stopped; the same command goes on from here")
    assert "Traceback" not in said
    assert not (tmp_path / "scene" / "run.json").exists()
    before = blocks_done()
    with program(*words, folder=tmp_path, log=log) as run:
        wait_for(lambda: blocks_done() > before)
        run.kill()
        run.wait(10)
    bundle = segment(scene, used, tmp_path, on(workers))
    assert before < bundle.run.resumed_blocks
    assert content(bundle) == content(segment_here(scene, used, tmp_path / "local"))


def test_processes_of_this_machine_do_a_batch(veca: Veca, scene: Path, used: Model, tmp_path: Path) -> None:
    small = [write_scene(tmp_path / f"{i}.png", 90, 200 + i, seed=i) for i in range(3)]
    (tmp_path / "bad.png").touch()
    words = ("segment", *small, tmp_path / "bad.png", scene, "--model", used.folder, "--device", "cpu")
    said = veca(*words, "--out", tmp_path / "dask", "--dask", "local:2", "--memory", "6GiB", "--json")
    assert said.status == 1, said.err
    assert "1 of 5 images failed" in said.err
    results = json.loads(said.out)
    assert "bad.png: the file is empty" in results[3]["error"]
    veca(*words, "--out", tmp_path / "local")
    for name in ("0", "1", "2", "scene"):
        assert content(Bundle.open(tmp_path / "dask" / name)) == content(Bundle.open(tmp_path / "local" / name))
    # Two processes and this one share what --memory allows.
    assert all(result["run"]["plan"]["memory"] < 3.5 * 2**30 for result in results if "run" in result)
    assert not [child for child in psutil.Process().children(recursive=True) if "distributed" in str(child.cmdline())]


# What is wrong with a cluster is said in one line.


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tcp://127.0.0.1:9", "no Dask scheduler answers at tcp://127.0.0.1:9; is it running"),
        ("nowhere.invalid:8786", "no Dask scheduler answers at nowhere.invalid:8786"),
        ("local:0", "cannot read 'local:0' as a number of processes; write local:4"),
        ("local:many", "cannot read 'local:many' as a number of processes"),
        ("none.json", "--dask 'none.json' is neither a file nor an address; write tcp://host:8786"),
        ("http://127.0.0.1:8786", "is neither a file nor an address"),
        ("empty.json", "empty.json is no scheduler file; give the one that `dask scheduler --scheduler-file` writes"),
        ("list.json", "list.json is no scheduler file"),
        ("odd.json", "odd.json names no address of a scheduler, but 'somewhere'"),
        ("old.json", "no Dask scheduler answers at tcp://127.0.0.1:9 (from old.json)"),
    ],
)
def test_a_cluster_that_cannot_be_reached_is_said_in_one_line(
    veca: Veca, tmp_path: Path, used: Model, monkeypatch: pytest.MonkeyPatch, address: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.cluster.PATIENCE", 1)
    image = write_scene(tmp_path / "a.png", 30, 40)
    files = {"empty": "", "list": "[1]", "odd": '{"address": "somewhere"}', "old": '{"address": "tcp://127.0.0.1:9"}'}
    for name, text in files.items():
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    said = veca("segment", image, "-m", used.folder, "-o", "out", "--dask", address)
    assert said.status == 2
    assert reason in said.line
    assert not list((tmp_path / "out").glob("*"))


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler without workers, for those that are wrong in some way."""
    with cluster(tmp_path_factory.mktemp("waiting")) as started:
        yield started


def test_a_scheduler_without_workers_is_waited_for_and_then_said(
    waiting: Cluster, scene: Path, used: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.crew.WAIT", 0.5)
    said = list[str]()
    with pytest.raises(RequestError, match=r"no worker has joined the scheduler at .*scheduler\.json"):
        segment(scene, used, tmp_path, on(waiting), report=said.append)
    assert said == [f"waiting for a worker to join the scheduler at {waiting.file}"]


@contextlib.contextmanager
def one_worker(of: Cluster, *words: object, **how: object) -> Iterator[None]:
    """The only worker there is, as long as the block lasts."""
    process = of.add(*(words or ("--nthreads", 1)), **how)  # type: ignore[arg-type]
    with client(of) as looking:
        looking.wait_for_workers(1, timeout=PATIENCE)
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            wait_for(lambda: not looking.nthreads())


def test_a_worker_that_runs_out_of_memory_steps_down_and_the_client_tells_once(
    waiting: Cluster, scene: Path, used: Model, local: Bundle, tmp_path: Path
) -> None:
    said = list[str]()
    wide = replace(used, card=used.card.model_copy(update={"window": 256}))
    with one_worker(waiting, preload=OUT_OF_MEMORY):
        halved = segment(scene, used, tmp_path / "batch", on(waiting), report=said.append)
        anew = segment(scene, wide, tmp_path / "window", on(waiting), report=said.append)
    assert halved.run.steps_down == ("out of memory on cpu: batch 4 -> 2",), "once, though all pieces step down"
    assert halved.areas() == local.areas()
    assert anew.run.steps_down == ("out of memory on cpu: window 256 px -> 128 px, started anew",)
    assert content(anew) == content(local)
    assert [line for line in said if "out of memory" in line] == [*halved.run.steps_down, *anew.run.steps_down]


@pytest.mark.parametrize(
    ("threads", "names"),
    [(1, ("deadly", "a", "b", "c")), (2, ("deadly-late", "slow", "b", "c"))],
    ids=["what waited on the worker", "what ran beside it"],
)
def test_an_image_that_kills_workers_fails_alone(
    used: Model, tmp_path: Path, threads: int, names: tuple[str, ...]
) -> None:
    """Dask blames all that the worker had."""
    images = [write_scene(tmp_path / f"{name}.png", 400, 500) for name in names]
    with cluster(tmp_path / "cluster", DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0") as strict:
        strict.add("--nthreads", threads, preload=DEADLY)
        failed, *others = segment_all(images, used, tmp_path / "out", on(strict))
    assert isinstance(failed, Failure)
    assert "workers died at the same blocks, 1 in turn; if they ran out of memory, give them less" in failed.reason
    assert [type(other) for other in others] == [Bundle] * 3


@pytest.mark.parametrize(
    ("begun", "excused"),
    [([], True), ([True] * 3, True), ([True] * 3 + [False], True), ([True] * 4, False)],
    ids=["waited each time", "waited once", "not alone once", "alone each time"],
)
def test_a_piece_is_blamed_that_was_at_work_alone_on_each_worker_that_died(begun: list[bool], *, excused: bool) -> None:
    assert _is_excused(begun, KilledWorker("key", None, 3)) is excused


def test_a_task_that_is_to_be_alone_waits_for_others_and_others_for_it() -> None:
    floor, order = _Floor(), list[str]()

    def take(name: str, *, alone: bool, until: threading.Event) -> threading.Thread:
        def run() -> None:
            with floor.taken(alone=alone):
                order.append(name)
                assert until.wait(PATIENCE)
                order.append(f"{name} ends")

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    first, second = threading.Event(), threading.Event()
    threads = [take(name, alone=False, until=first) for name in ("a", "b")]
    wait_for(lambda: sorted(order) == ["a", "b"])
    threads.append(take("alone", alone=True, until=second))
    wait_for(lambda: floor._reserved)
    threads.append(take("c", alone=False, until=second))
    time.sleep(0.1)
    assert sorted(order) == ["a", "b"]
    first.set()
    wait_for(lambda: "alone" in order)
    time.sleep(0.1)
    assert order[4:] == ["alone"]
    second.set()
    for thread in threads:
        thread.join()
    assert order[4:] == ["alone", "alone ends", "c", "c ends"]


@pytest.mark.parametrize(
    ("preload", "reason"),
    [
        (WITHOUT_VECA, "it has no pipelines.*; install veca there, the same version as here"),
        (ANOTHER_VERSION, r"it has veca 0\.0\.9 \(here .*\); install the same versions"),
    ],
    ids=["without veca", "another version"],
)
def test_workers_of_another_kind_are_told(
    waiting: Cluster, scene: Path, used: Model, tmp_path: Path, preload: str, reason: str
) -> None:
    with (
        one_worker(waiting, preload=preload),
        pytest.raises(RequestError, match=f"no worker of .* can take part; each says: {reason}"),
    ):
        segment(scene, used, tmp_path, on(waiting))
    assert not list(tmp_path.iterdir())


def test_a_worker_that_does_not_see_the_same_files_is_told_gets_the_model_and_plans_within_its_share(
    waiting: Cluster, scene: Path, used: Model, local: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path through /proc/self/cwd is another place in each process, as a folder is that is not mounted everywhere."""
    here, there = Path("/proc/self/cwd"), tmp_path / "worker"
    there.mkdir()
    (tmp_path / "client").mkdir()
    monkeypatch.chdir(tmp_path / "client")
    save_model(Path("hidden"), used.network, used.card)
    hidden = load_model(here / "hidden")
    Path("images").mkdir()
    Path("images/a.png").write_bytes(scene.read_bytes())
    with one_worker(waiting, "--nthreads", 2, "--memory-limit", "3GiB", cwd=there):
        with pytest.raises(RequestError, match="it does not see /proc/self/cwd/images; every worker needs the images"):
            segment(here / "images" / "a.png", hidden, tmp_path / "out", on(waiting))
        with pytest.raises(RequestError, match="it does not see /proc/self/cwd/out; every worker needs the --out"):
            segment(scene, hidden, here / "out", on(waiting))
        (there / "out").mkdir()
        with pytest.raises(RequestError, match="its /proc/self/cwd/out is another folder; every worker must share it"):
            segment(scene, hidden, here / "out", on(waiting))
        assert not list((there / "out").iterdir())
        assert not list((tmp_path / "client" / "out").iterdir())
        (there / "images").mkdir()
        with pytest.raises(ImageError, match="does not see it; every worker needs the same path"):
            segment(here / "images" / "a.png", hidden, tmp_path / "out", on(waiting))
        (there / "images" / "a.png").write_bytes(b"another file")
        with pytest.raises(ImageError, match="sees another file there, of 12 bytes"):
            segment(here / "images" / "a.png", hidden, tmp_path / "out", on(waiting))
        bundle = segment(scene, hidden, tmp_path / "out", on(waiting))
        assert content(bundle).keys() == content(local).keys()
        assert bundle.areas() == local.areas()
        # Two pieces at once share what Dask allows the worker, less a margin and what the process holds.
        held = 2 * bundle.run.plan.memory - 3 * 0.7 * 2**30
        assert 100 * 2**20 < held < 2**30
        assert 0 < bundle.run.peak_memory < 0.7 * 3 * 2**30
        with pytest.raises(RequestError, match=r"is not enough: the smallest plan .* allow more with --memory"):
            segment(scene, used, tmp_path / "little", on(waiting, memory=10 * 2**20))


def test_a_scheduler_that_goes_away_ends_the_run_in_one_line_and_another_goes_on(
    scene: Path, used: Model, local: Bundle, tmp_path: Path, workers: Cluster
) -> None:
    with cluster(tmp_path / "cluster") as dying:
        dying.add("--nthreads", 1)

        def end(done: int, _total: int) -> None:
            if done:
                dying.scheduler.kill()

        results = segment_all([scene], used, tmp_path / "out", on(dying), tick=end)
        assert [type(result) for result in results] == [Failure]
        assert isinstance(results[0], Failure)
        assert "scheduler.json is gone; the same command goes on from here when it is back" in results[0].reason
    bundle = segment(scene, used, tmp_path / "out", on(workers))
    assert bundle.run.resumed_blocks >= 1
    assert content(bundle) == content(local)


def test_a_client_that_gave_up_the_scheduler_ends_without_a_trace(
    used: Model, tmp_path: Path, workers: Cluster
) -> None:
    with hire(used, on(workers), tmp_path / "out", [], quiet) as team:
        team.client.close()
    assert team.client.status == "closed"


@pytest.mark.parametrize(
    ("overwrite", "command"), [(False, "the same command"), (True, "the same command without --overwrite")]
)
def test_a_run_that_started_anew_is_not_told_to_do_so_again(
    used: Model, tmp_path: Path, *, overwrite: bool, command: str
) -> None:
    options = Options(dask="a.json", overwrite=overwrite)
    crew = Crew(None, used, options, tmp_path, [], quiet)  # type: ignore[arg-type]
    assert crew.gone == f"the Dask scheduler at a.json is gone; {command} goes on from here when it is back"


def test_a_gpu_of_one_machine_and_pixels_in_memory_cannot_be_sent_to_a_cluster(used: Model, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="with --dask give cuda: each worker uses its own"):
        segment(tmp_path / "a.png", used, tmp_path, Options(device="cuda:1", dask="local:1"))
    with pytest.raises(RequestError, match="an array cannot be sent to a cluster"):
        segment(np.zeros((9, 9, 3), np.uint8), used, tmp_path, Options(dask="local:1"), name="a")


@given(st.integers(1, 1500), st.integers(1, 1500), st.sampled_from([64, 512]), st.sampled_from([1, 2, 8]))
def test_pieces_hold_every_block_once_and_row_by_row(height: int, width: int, block: int, side: int) -> None:
    whole = list(blocks(Size(height, width), block))
    pieces = cut(whole, block * side)
    assert sorted((box for piece in pieces for box in piece), key=whole.index) == whole
    assert all(piece == sorted(piece, key=lambda box: (box.y, box.x)) for piece in pieces)
    assert all(len(piece) <= side**2 for piece in pieces)
