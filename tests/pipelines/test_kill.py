"""kill -9 at ten random moments: each restart does only what is missing, and the end is the same to the byte."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest
from places import write_raster


class Run(Protocol):
    """Segments into a folder, whole or until it is killed, after a time or at an export; returns the seconds taken."""

    def __call__(self, out: Path, *, kill_after: float | None = None, kill_at: str = "") -> float: ...


@contextmanager
def runner(image: Path) -> Iterator[Run]:
    program = [sys.executable, str(Path(__file__).with_name("killable.py")), str(image)]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        into, said = process.stdin, process.stdout

        def run(out: Path, *, kill_after: float | None = None, kill_at: str = "") -> float:
            into.write(f"{out}\t{kill_at}\n")
            into.flush()
            child, started = int(said.readline()), time.monotonic()
            if kill_after is not None:
                time.sleep(kill_after)
                os.kill(child, signal.SIGKILL)
            assert said.readline() == "ended\n"
            return time.monotonic() - started

        yield run
        into.close()


def content(folder: Path) -> dict[str, bytes]:
    paths = [*(folder / "labels.zarr").rglob("*"), folder / "mask.tif", folder / "areas.csv"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}


def noted_blocks(folder: Path) -> int:
    """How many blocks an unfinished run has done."""
    journal = folder / "labels.zarr.partial" / "journal.txt"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork and no kill -9")
def test_ten_kills_lose_nothing_and_change_no_byte(tmp_path: Path) -> None:
    image, chance = write_raster(tmp_path / "scene.tif", 640, 900), random.Random(0)
    killed, counts = tmp_path / "killed", [0]
    with runner(image) as run:
        whole = run(tmp_path / "whole")
        for _ in range(10):
            run(killed, kill_after=chance.uniform(0.02, 0.16) * whole)
            assert not (killed / "scene" / "run.json").exists(), "ten kills come before the end"
            counts.append(noted_blocks(killed / "scene"))
        run(killed)
    assert counts == sorted(counts), "what is finished stays finished"
    assert len(set(counts)) > 3, "kills came in the midst of the work"
    said = json.loads((killed / "said.json").read_text(encoding="utf-8"))
    assert said["blocks"] == 150
    assert said["resumed"] in (counts[-1], counts[-1] - 1), "a line that was cut short counts as not written"
    first, last = content(tmp_path / "whole" / "scene"), content(killed / "scene")
    assert len(first) > said["blocks"]
    assert first == last


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork and no kill -9")
def test_a_kill_between_exports_loses_nothing_and_changes_no_byte(tmp_path: Path) -> None:
    image = write_raster(tmp_path / "scene.tif", 200, 130)
    whole, killed = tmp_path / "whole" / "scene", tmp_path / "killed" / "scene"
    with runner(image) as run:
        run(whole.parent)
        for export in ("mask", "areas"):
            run(killed.parent, kill_at=export)
            assert (killed / "labels.zarr").is_dir()
            assert not (killed / "run.json").exists()
            assert not (killed / f"{export}.{'tif' if export == 'mask' else 'csv'}").exists()
        run(killed.parent)
    said = json.loads((killed.parent / "said.json").read_text(encoding="utf-8"))
    assert said["resumed"] == said["blocks"], "labels that are there already are not made again"
    assert content(killed) == content(whole)
    assert not [
        path.name for path in killed.iterdir() if path.name.startswith(".") or path.suffix in (".lock", ".partial")
    ]
