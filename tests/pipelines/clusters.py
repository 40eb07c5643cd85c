"""Dask clusters as users start them: a scheduler and workers, each its own program of the `dask` command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

DASK = Path(sys.executable).with_name("dask")
ROOT = Path(__file__).parents[2]
PATIENCE = 240
"""Seconds that a program has to start: a worker imports torch, on a machine that may be busy with much else."""
WITHOUT_VECA = "import sys\nfor name in ('pipelines', 'tiling', 'veca_core'):\n    sys.modules[name] = None\n"
"""A preload that makes a program one in whose environment veca is not installed."""
ANOTHER_VERSION = (
    "import importlib.metadata as m\n"
    "m.version = lambda name, true=m.version: '0.0.9' if name == 'veca' else true(name)\n"
)
SMALL_BLOCKS = "import pipelines.planner\npipelines.planner.BLOCKS = (512,)\n"
"""A preload after which images of a thousand pixels make several blocks."""
OUT_OF_MEMORY = (
    SMALL_BLOCKS
    + """
import dataclasses
import torch
from pipelines import inference, worker

def plan(*arguments, true=worker.make_plan):
    return dataclasses.replace(true(*arguments), batch=4)

def run(self, pixels, true=inference.Predictor._run):
    if self.batch * pixels.shape[1] * pixels.shape[2] > 2 * 128 * 128:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return true(self, pixels)

worker.make_plan, inference.Predictor._run = plan, run
"""
)
"""A preload after which plans have batches of four, and a worker has memory for two windows of 128 px."""
DEADLY = (
    SMALL_BLOCKS
    + """
import os
import time
from pipelines import worker

def open_image(path, *arguments, true=worker.open_image, **how):
    if "deadly" in path:
        time.sleep(1 if "late" in path else 0)
        os._exit(1)
    if "slow" in path:
        time.sleep(3)
    return true(path, *arguments, **how)

worker.open_image = open_image
"""
)
"""A preload after which an image that is called deadly ends the process that opens it; a slow one takes its time."""


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Returns when the condition holds; fails where it does not in time."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, "this did not happen in time"
        time.sleep(0.05)


@contextmanager
def program(*words: object, folder: Path, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a session of its own, and all that it started; ends with the block."""
    setting = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    # Where a shell runs the tests in the background, Ctrl-C is ignored, and every program would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with log.open("wb") as file:
            process = subprocess.Popen(
                [str(word) for word in words], cwd=folder, stdout=file, stderr=file, env=setting, start_new_session=True
            )
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


class Cluster:
    """A scheduler and its workers, in a folder of their own."""

    def __init__(self, folder: Path, opened: ExitStack, **environment: str) -> None:
        """`environment` is the scheduler's."""
        self.folder = folder
        self.file = folder / "scheduler.json"
        self._opened = opened
        self._count = 0
        # The scheduler needs no veca, so it gets none.
        without = self.preload("without_veca", WITHOUT_VECA)
        words = ("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", self.file)
        self.scheduler = opened.enter_context(self._dask(*words, "--preload", without, **environment))
        wait_for(self.file.exists)

    def preload(self, name: str, code: str) -> Path:
        path = self.folder / f"{name}.py"
        path.write_text(code, encoding="utf-8")
        return path

    def add(self, *words: object, preload: str = SMALL_BLOCKS, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        """Starts one worker; it may take some seconds to join."""
        self._count += 1
        path = self.preload(f"worker_{self._count}", preload)
        common = ("worker", "--scheduler-file", self.file, "--host", "127.0.0.1", "--no-dashboard", "--preload", path)
        scratch = self.folder / f"scratch-{self._count}"
        return self._opened.enter_context(self._dask(*common, "--local-directory", scratch, *words, cwd=cwd))

    def _dask(
        self, *words: object, cwd: Path | None = None, **environment: str
    ) -> AbstractContextManager[subprocess.Popen[bytes]]:
        log = self.folder / f"{words[0]}-{self._count}.log"
        return program(DASK, *words, folder=cwd or self.folder, log=log, OMP_NUM_THREADS="1", **environment)


@contextmanager
def cluster(folder: Path, **environment: str) -> Iterator[Cluster]:
    """A scheduler without workers yet; `environment` is its own."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        yield Cluster(folder, opened, **environment)
