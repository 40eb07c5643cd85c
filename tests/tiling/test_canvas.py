"""A canvas gives the same bytes whatever the order of its blocks, and whatever kills the process that writes it."""

from __future__ import annotations

import multiprocessing
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from label_images import CLASSES, SLIDE, canvas, content, publish, random_labels

from tiling.canvas import Canvas
from tiling.errors import ImageError
from tiling.geometry import Box, Size
from tiling.journal import Journal
from tiling.labels import NODATA, LabelClass, Labels
from tiling.lock import Busy

VALUES = random_labels(700, 600, smooth=7)
VALUES[:256, 256:512] = NODATA
SIZE = Size(*VALUES.shape)
BLOCKS: dict[str, Any] = {"block": 256, "chunk": 64}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of VALUES, written in one go."""
    return content(publish(tmp_path_factory.mktemp("whole"), VALUES, **BLOCKS).path)


def start(folder: Path, **changed: Any) -> Canvas:
    return canvas(folder / "labels.zarr.partial", SIZE, **(BLOCKS | changed))


def write(one: Canvas, count: int | None = None) -> None:
    """The first `count` blocks that are missing, or all."""
    for box in [box for box in one.blocks if not one.is_done(box)][:count]:
        one.write(box, VALUES[box.slices])


def test_a_block_is_one_file_and_one_without_data_is_none(tmp_path: Path) -> None:
    with start(tmp_path) as one:
        assert [(box.y, box.x, box.height, box.width) for box in one.blocks][:5] == [
            (0, 0, 256, 256),
            (0, 256, 256, 256),
            (0, 512, 256, 88),
            (256, 0, 256, 256),
            (256, 256, 256, 256),
        ]
        for box in one.blocks:
            before = set(content(one.path / "0"))
            one.write(box, VALUES[box.slices])
            made = {f"c/{box.y // 256}/{box.x // 256}"} if (VALUES[box.slices] != NODATA).any() else set()
            assert {name for name in set(content(one.path / "0")) - before if name.count("/") == 2} == made
            assert one.is_done(box)


@pytest.mark.parametrize("seed", range(2))
def test_the_order_of_blocks_leaves_no_trace(tmp_path: Path, whole: dict[str, bytes], seed: int) -> None:
    with start(tmp_path) as one:
        boxes = list(one.blocks)
        random.Random(seed).shuffle(boxes)
        one.write(boxes[0], np.full_like(VALUES[boxes[0].slices], 1))  # and is then written again, as it should be
        for box in boxes:
            one.write(box, VALUES[box.slices])
        assert content(one.publish(tmp_path / "labels.zarr").path) == whole


def test_threads_may_write_at_once(tmp_path: Path, whole: dict[str, bytes]) -> None:
    with start(tmp_path) as one, ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda box: one.write(box, VALUES[box.slices]), one.blocks))
        assert content(one.publish(tmp_path / "labels.zarr").path) == whole


def _write_elsewhere(pickled: bytes, box: Box) -> None:
    pickle.loads(pickled).write(box, VALUES[box.slices])


def test_other_processes_may_write_blocks(tmp_path: Path, whole: dict[str, bytes]) -> None:
    context = multiprocessing.get_context("spawn")
    with start(tmp_path) as one, ProcessPoolExecutor(2, context) as workers:
        for job in [workers.submit(_write_elsewhere, pickle.dumps(one), box) for box in one.blocks]:
            job.result()
        assert content(one.publish(tmp_path / "labels.zarr").path) == whole


def _store_elsewhere(pickled: bytes, box: Box) -> int:
    one: Canvas = pickle.loads(pickled)
    assert one.is_current()
    return one.store(box, VALUES[box.slices])


def test_one_process_may_note_what_others_store(tmp_path: Path, whole: dict[str, bytes]) -> None:
    context = multiprocessing.get_context("spawn")
    with start(tmp_path) as one, ProcessPoolExecutor(2, context) as workers:
        jobs = {box: workers.submit(_store_elsewhere, pickle.dumps(one), box) for box in one.blocks}
        stored = {box: job.result() for box, job in jobs.items()}
        assert one.noted() == {}
        assert not any(map(one.is_done, one.blocks))
        one.note(stored)
        assert one.noted() == stored
        assert one.damaged() == []
        pickle.loads(pickle.dumps(one)).finish()  # as a worker does while this process holds the lock
        assert content(one.publish(tmp_path / "labels.zarr").path) == whole


def test_a_block_that_is_stored_again_is_never_missing_meanwhile(tmp_path: Path) -> None:
    with start(tmp_path) as one:
        box = next(iter(one.blocks))
        one.write(box, VALUES[box.slices])
        shard, over = one.path / "0" / "c" / "0" / "0", threading.Event()

        def again() -> None:
            for _ in range(30):
                one.store(box, VALUES[box.slices])
            over.set()

        with ThreadPoolExecutor(1) as threads:
            job = threads.submit(again)
            while not over.is_set() and not job.done():
                assert shard.exists()
            job.result()


def test_blocks_that_cannot_be_read_back_are_told_and_can_be_done_again(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    with start(tmp_path) as one:
        write(one)
        boxes = list(one.blocks)
        (one.path / "0" / "c" / "0" / "2").unlink()
        spoiled = one.path / "0" / "c" / "1" / "2"
        spoiled.write_bytes(b"?" + spoiled.read_bytes()[: len(spoiled.read_bytes()) // 2])
        lost = [boxes[2], boxes[5]]
        assert one.damaged() == lost
        one.forget(lost)
        assert one.noted().keys() == set(boxes) - set(lost)
        with pytest.raises(ImageError, match="2 blocks are not written"):
            one.finish()
        for box in lost:
            one.write(box, VALUES[box.slices])
        assert one.damaged() == []
        assert content(one.publish(tmp_path / "labels.zarr").path) == whole


def test_who_writes_for_a_canvas_notices_when_another_took_its_place(tmp_path: Path) -> None:
    with start(tmp_path) as one:
        other = pickle.loads(pickle.dumps(one))
        assert other.is_current()
    with start(tmp_path, fingerprint="another"):
        assert not other.is_current()
    with start(tmp_path) as one:
        assert other.is_current()
        write(one)
        one.publish(tmp_path / "labels.zarr")
    assert not other.is_current()


def test_a_canvas_is_taken_up_where_it_was_left(tmp_path: Path, whole: dict[str, bytes]) -> None:
    with start(tmp_path) as one:
        write(one, 5)
    with start(tmp_path) as one:
        assert [one.is_done(box) for box in one.blocks] == [True] * 5 + [False] * 4
        with pytest.raises(ImageError, match="4 blocks are not written"):
            one.finish()
        write(one)
        assert content(one.publish(tmp_path / "labels.zarr").path) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["labels.zarr"]


@pytest.mark.parametrize(
    "changed",
    [
        {"fingerprint": "another"},
        {"classes": (*CLASSES, LabelClass(2, "new", (1, 2, 3)))},
        {"georef": SLIDE.shifted(1, 0)},
        {"chunk": 128},
        {"block": 128},
    ],
)
def test_anything_that_changed_starts_anew(tmp_path: Path, changed: dict[str, Any]) -> None:
    with start(tmp_path) as one:
        write(one, 5)
    with start(tmp_path, **changed) as one:
        assert not any(map(one.is_done, one.blocks))
        assert len(content(one.path / "0")) == 1


def test_a_torn_journal_keeps_what_is_whole(tmp_path: Path, whole: dict[str, bytes]) -> None:
    with start(tmp_path) as one:
        write(one, 6)
    journal = one.path / "journal.txt"
    journal.write_bytes(journal.read_bytes()[:-3])
    with start(tmp_path) as one:
        assert sum(map(one.is_done, one.blocks)) == 5
        write(one)
        assert content(one.publish(tmp_path / "labels.zarr").path) == whole


@given(kept=st.integers(0, 200), rubbish=st.binary(max_size=9).filter(lambda text: b"\n" not in text))
def test_a_journal_cut_anywhere_lists_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, kept: int, rubbish: bytes
) -> None:
    journal = Journal(tmp_path_factory.getbasetemp() / "journal.txt")
    boxes = {Box(0, x, 4096, 4096): 7 * x for x in range(0, 40960, 4096)}
    journal.rewrite(boxes)
    text = journal.path.read_bytes()[:kept]
    journal.path.write_bytes(text + rubbish)
    assert list(journal.read().items()) == list(boxes.items())[: text.count(b"\n")]


def test_a_line_after_a_torn_one_counts(tmp_path: Path) -> None:
    """As after a full disk that was cleared while the process lived on."""
    journal, boxes = Journal(tmp_path / "journal.txt"), [Box(0, x, 2, 2) for x in range(0, 6, 2)]
    journal.append({boxes[0]: 1})
    with (tmp_path / "journal.txt").open("ab") as file:
        file.write(b"0 2 2")
    journal._torn = True
    journal.append({boxes[2]: 3})
    assert journal.read() == {boxes[0]: 1, boxes[2]: 3}


@pytest.mark.parametrize("damage", ["cut", "scrambled", "lost"])
def test_a_block_that_the_disk_lost_is_done_again(tmp_path: Path, whole: dict[str, bytes], damage: str) -> None:
    with start(tmp_path) as one:
        write(one, 6)
    shard = one.path / "0" / "c" / "0" / "0"
    intact = shard.read_bytes()
    if damage == "lost":
        shard.unlink()
    else:
        shard.write_bytes(intact[:100] if damage == "cut" else intact[:64] + bytes(64) + intact[128:])
    with start(tmp_path) as one:
        assert [one.is_done(box) for box in one.blocks][:7] == [False, *[True] * 5, False]
        write(one)
        assert content(one.publish(tmp_path / "labels.zarr").path) == whole


@pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json", "journal.txt"])
@pytest.mark.parametrize("left", [None, 10])
def test_a_damaged_canvas_starts_anew(tmp_path: Path, whole: dict[str, bytes], name: str, left: int | None) -> None:
    with start(tmp_path) as one:
        write(one, 6)
    path = one.path / name
    if left is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:left])
    (one.path / "0" / "c" / "0" / "0.0123456789abcdef.partial").write_bytes(b"half a shard")
    with start(tmp_path) as one:
        assert not any(map(one.is_done, one.blocks))
        write(one)
        assert content(one.publish(tmp_path / "labels.zarr").path) == whole


def test_what_is_not_a_canvas_is_not_wiped(tmp_path: Path) -> None:
    precious = tmp_path / "labels.zarr.partial" / "thesis.docx"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(ImageError, match=r"thesis\.docx"):
        start(tmp_path)
    assert precious.read_text() == "years of work"
    assert not (tmp_path / "labels.zarr.partial.lock").exists()


def test_a_second_writer_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    with start(tmp_path) as one:
        write(one, 1)
        with pytest.raises(Busy, match="another process is writing"):
            start(tmp_path)
    with start(tmp_path) as one:
        assert sum(map(one.is_done, one.blocks)) == 1


def test_starting_anew_discards_what_was_left_but_not_what_is_being_written(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    with start(tmp_path) as one:
        write(one, 5)
        with pytest.raises(Busy, match="another process is writing"):
            start(tmp_path, anew=True)
        assert one.path.is_dir()
        write(one, 2)
    with start(tmp_path, anew=True) as one:
        assert not any(map(one.is_done, one.blocks))
        with pytest.raises(Busy):
            start(tmp_path, anew=True)
        write(one)
        assert content(one.publish(tmp_path / "labels.zarr").path) == whole


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini"])
def test_what_a_file_browser_left_does_not_block_a_new_start(
    tmp_path: Path, whole: dict[str, bytes], name: str
) -> None:
    with start(tmp_path) as one:
        write(one, 2)
    (one.path / name).write_bytes(b"left")
    with start(tmp_path, fingerprint="another") as one:
        assert not (one.path / name).exists()
    (one.path / name).write_bytes(b"left")
    with start(tmp_path) as one:
        write(one)
        assert content(one.publish(tmp_path / "labels.zarr").path) == whole


def test_publishing_replaces_the_old_labels_as_a_whole(tmp_path: Path, whole: dict[str, bytes]) -> None:
    publish(tmp_path, np.zeros((3000, 5), np.uint8))
    (tmp_path / "labels.zarr" / "note.txt").write_text("left by a user")
    labels = publish(tmp_path, VALUES, **BLOCKS)
    assert content(labels.path) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["labels.zarr"]


def test_a_finished_canvas_that_was_not_published_is_published(tmp_path: Path, whole: dict[str, bytes]) -> None:
    with start(tmp_path) as one:
        write(one)
        finished = one.finish()
        assert finished.path == one.path
    publish(tmp_path / "other", VALUES)
    (tmp_path / "other" / "labels.zarr").rename(tmp_path / "labels.zarr.old")  # killed between two renames
    with start(tmp_path) as one:
        assert all(map(one.is_done, one.blocks))
        assert content(one.publish(tmp_path / "labels.zarr").path) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.zarr", "other"]


@pytest.mark.parametrize(
    ("box", "labels", "message"),
    [
        (Box(0, 0, 256, 255), np.zeros((256, 255), np.uint8), "not a block"),
        (Box(1, 0, 256, 256), np.zeros((256, 256), np.uint8), "not a block"),
        (Box(768, 0, 256, 256), np.zeros((256, 256), np.uint8), "not a block"),
        (Box(0, 0, 256, 256), np.zeros((256, 88), np.uint8), "256 x 256"),
        (Box(0, 0, 256, 256), np.zeros((256, 256), np.int64), "uint8"),
        (Box(0, 0, 256, 256), np.full((256, 256), 8, np.uint8), r"hold \[8\]"),
    ],
)
def test_labels_that_do_not_belong_are_refused(tmp_path: Path, box: Box, labels: Any, message: str) -> None:
    with start(tmp_path) as one:
        with pytest.raises(ValueError, match=message):
            one.write(box, labels)
        assert not any(map(one.is_done, one.blocks))


def test_blocks_must_be_whole_chunks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="whole number of chunks"):
        start(tmp_path, block=100, chunk=64)


@pytest.mark.parametrize(
    ("size", "block", "chunk"),
    [((1, 1), 512, 64), ((1, 70000), 8192, 512), ((70000, 1), 8192, 512), ((513, 7), 120, 3), ((1, 3), 1, 1)],
)
def test_images_of_any_shape_are_kept(tmp_path: Path, size: tuple[int, int], block: int, chunk: int) -> None:
    values = random_labels(*size)
    labels = publish(tmp_path, values, block=block, chunk=chunk)
    np.testing.assert_array_equal(labels.read(labels.size.box), values)
    assert max(labels.levels[-1].shape) <= 512


def test_an_image_without_data_is_kept_without_a_single_shard(tmp_path: Path) -> None:
    labels = publish(tmp_path, np.full((1200, 1100), NODATA, np.uint8))
    assert (labels.read(labels.size.box) == NODATA).all()
    assert {Path(name).name for name in content(labels.path)} == {"zarr.json", "0", "1", "2"}


PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
import test_canvas
folder, pause = Path({folder!r}), {pause}
print("ready", flush=True)
with test_canvas.start(folder) as one:
    for box in one.blocks:
        if not one.is_done(box):
            one.write(box, test_canvas.VALUES[box.slices])
            time.sleep(pause)
    one.publish(folder / "labels.zarr")
"""


def run(folder: Path, pause: float, preamble: str = "") -> subprocess.Popen[str]:
    program = preamble + PROGRAM.format(here=str(Path(__file__).parent), folder=str(folder), pause=pause)
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", program], stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_run_that_is_killed_again_and_again_gives_the_same_bytes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    journal = tmp_path / "labels.zarr.partial" / "journal.txt"
    for count in (2, 5):
        with run(tmp_path, pause=0.02) as process:
            while not journal.exists() or journal.read_bytes().count(b"\n") < count:
                assert process.poll() is None, process.stderr.read() if process.stderr else ""
                time.sleep(0.002)
            with pytest.raises(Busy):
                start(tmp_path)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        done = journal.read_bytes().count(b"\n")
        assert count <= done < 9
    with start(tmp_path) as one:
        assert sum(map(one.is_done, one.blocks)) == done
        write(one)
        assert content(one.publish(tmp_path / "labels.zarr").path) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["labels.zarr"]


@pytest.mark.parametrize("part", ["1/zarr.json", "2/c/0/0"])
def test_a_run_that_is_killed_while_it_finishes_gives_the_same_bytes(
    tmp_path: Path, whole: dict[str, bytes], part: str
) -> None:
    with start(tmp_path) as one:
        write(one)
    made = one.path / part
    with run(tmp_path, pause=0) as process:
        while not made.exists() and process.poll() is None:
            time.sleep(0.0005)
        process.kill()
    if not (tmp_path / "labels.zarr").exists():
        with start(tmp_path) as one:
            assert all(map(one.is_done, one.blocks))
            one.publish(tmp_path / "labels.zarr")
    assert content(tmp_path / "labels.zarr") == whole


LIMITED = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files, which Windows lacks")
def test_a_block_that_does_not_fit_on_the_disk_is_not_done(tmp_path: Path, whole: dict[str, bytes]) -> None:
    with start(tmp_path):
        pass
    with run(tmp_path, pause=0, preamble=LIMITED) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "OSError: [Errno 27]" in errors
    assert not Journal(tmp_path / "labels.zarr.partial" / "journal.txt").read()
    with start(tmp_path) as one:
        assert not any(map(one.is_done, one.blocks))
        write(one)
        assert content(one.publish(tmp_path / "labels.zarr").path) == whole


def test_labels_open_refuses_a_canvas_at_work(tmp_path: Path) -> None:
    with start(tmp_path) as one:
        write(one)
        with pytest.raises(ImageError, match="not finished"):
            Labels.open(one.path)
        assert zarr.open_array(one.path / "0", mode="r").shape == (700, 600)
