"""The page's end of the process that holds the network: asks, listens, and knows how far everything is. No torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.live.board import Board

State = Literal["waiting", "running", "finished", "stopped", "failed"]
REGIONS: Final = "regions"
"""In this folder of the first root, regions are kept."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user asks the network for."""

    image: str
    """Path of the image."""
    model: str
    """A shipped model's name, or a model folder."""
    cores: int | None = None
    memory: int | None = None
    """Bytes."""
    spacing: str | None = None


@dataclass(slots=True)
class Task:
    """One request and how far it is."""

    id: str
    what: str
    wish: Wish
    state: State = "waiting"
    done: float = 0.0
    """0..1."""
    cells: list[list[int]] = field(default_factory=list)
    """(y, x, height, width) of what can be looked at, in the order in which it was finished."""
    reason: str = ""
    """Why it failed, in one line."""
    answer: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    """Where a region is kept when it is finished."""
    asked: float = field(default_factory=time.monotonic)
    first: float | None = None
    """Seconds until the first cell."""
    ended: threading.Event = field(default_factory=threading.Event)


class Engine:
    """Starts the process when it is first needed, and again where it was killed."""

    def __init__(self, keep: Path) -> None:
        """`keep` is where finished regions go."""
        self._keep = keep
        self._scratch = tempfile.TemporaryDirectory(prefix="veca-view-")
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._listener: threading.Thread | None = None
        self.tasks: dict[str, Task] = {}

    def warm(self, model: str) -> Task:
        """Loads a model ahead of its first use."""
        return self._ask("warm", Wish("", model))

    def plan(self, wish: Wish, corners: Sequence[tuple[float, float]]) -> Task:
        """What a region would be run with: `answer` has `lines` and `table`."""
        return self._ask("plan", wish, corners=corners)

    def segment(self, wish: Wish, corners: Sequence[tuple[float, float]]) -> Task:
        """Segments a region; its cells can be looked at through `board` as they are finished."""
        name = uuid.uuid4().hex
        cores = f"{wish.cores} cores" if wish.cores else "all cores"
        title = f"region {time.strftime('%Y-%m-%d %H.%M.%S')}, {Path(wish.model).name}, {cores}"
        folder = self._keep / f"{title} {name[:6]}"
        board = self._scratch.name + "/" + name
        return self._ask("segment", wish, name=name, corners=corners, folder=str(folder), board=board, title=title)

    def attention(self, wish: Wish, centre: tuple[float, float]) -> Task:
        """What each core looks at around a level-0 (y, x): `maps` has the pictures when it is finished."""
        name = uuid.uuid4().hex
        return self._ask("attention", wish, name=name, centre=centre, file=f"{self._scratch.name}/{name}.npy")

    def export(self, folder: Path, names: Sequence[str]) -> Task:
        """Makes further files from the labels in the folder of a result or region."""
        return self._ask("export", Wish("", ""), names=list(names), folder=str(folder))

    def correct(self, folder: Path) -> Task:
        """Writes a corrected mask and its files into the folder of its corrections."""
        return self._ask("correct", Wish("", ""), folder=str(folder))

    def excerpt(
        self,
        layer: tuple[Path, Path | None],
        corners: Sequence[tuple[float, float]] | None,
        values: Sequence[int],
        names: Sequence[str],
        folder: Path,
    ) -> Task:
        """Writes files of a part of a mask into a folder; `layer` is the mask's folder and that of its corrections."""
        mask, corrections = layer
        return self._ask(
            "excerpt", Wish("", ""), folder=str(folder), mask=str(mask), corners=corners, values=list(values),
            names=list(names), corrections=str(corrections) if corrections else None,
        )  # fmt: skip

    def stop(self, task: Task) -> None:
        """Ends a request after the cell that it is at; what is finished is kept."""
        self._send({"do": "stop", "id": task.id})

    def board(self, task: Task) -> Board:
        """The tiles of a region. Raises FileNotFoundError before its first one."""
        return Board.open(Path(self._scratch.name) / task.id)

    def maps(self, task: Task) -> NDArray[np.uint8]:
        """(layers, cores, h, w), 0..255 each. Raises FileNotFoundError before it is finished."""
        maps: NDArray[np.uint8] = np.load(Path(self._scratch.name) / f"{task.id}.npy", mmap_mode="r")
        return maps

    @property
    def pid(self) -> int | None:
        """Of the process that holds the network, where it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def close(self) -> None:
        """Ends the process."""
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()
            process.wait(10)
        if self._listener is not None:
            self._listener.join(10)
        self._scratch.cleanup()

    def _ask(self, what: str, wish: Wish, name: str | None = None, **more: Any) -> Task:
        task = Task(name or uuid.uuid4().hex, what, wish)
        if "folder" in more:
            task.folder = Path(more["folder"])
        self.tasks[task.id] = task
        fields = {"image": wish.image, "model": wish.model, "cores": wish.cores, "memory": wish.memory}
        self._send({"do": what, "id": task.id, "spacing": wish.spacing, **fields, **more})
        return task

    def _send(self, message: dict[str, Any]) -> None:
        with self._lock:
            for _ in range(2):  # it may end between the look and the word
                if self._process is None or self._process.poll() is not None:
                    self._start()
                process = self._process
                assert process is not None
                assert process.stdin is not None
                with suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(message) + "\n")
                    process.stdin.flush()
                    return
                process.wait()

    def _start(self) -> None:
        command = [sys.executable, "-P", "-m", "pipelines.live.worker"]
        # Threads that spin while they wait would take the processor from the tiles and from the browser.
        environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment,
        )  # fmt: skip
        self._listener = threading.Thread(target=self._listen, args=(self._process,), daemon=True)
        self._listener.start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._hear(json.loads(line))
        status = process.wait()
        process.stdout.close()
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.close()
        for task in list(self.tasks.values()):
            if not task.ended.is_set():
                task.reason = f"the process that computes it ended with status {status}; perhaps memory ran out"
                self._end(task, "failed")

    def _hear(self, message: dict[str, Any]) -> None:
        task = self.tasks.get(message["id"])
        if task is None:
            return
        event = message["event"]
        if event == "started":
            task.state, task.answer = "running", message
        elif event == "cell":
            if task.first is None:
                task.first = time.monotonic() - task.asked
            task.done = message["done"]
            task.cells.append(message["cell"])
        elif event == "failed":
            task.reason = message["reason"]
            self._end(task, "failed")
        elif event == "stopped":
            self._end(task, "stopped")
        else:
            task.answer = {**task.answer, **message}
            task.done = 1.0
            self._end(task, "finished" if message.get("whole", True) else "stopped")

    def _end(self, task: Task, state: State) -> None:
        task.state = state
        task.ended.set()
