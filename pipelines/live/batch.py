"""A run over many images, started from the page: the command line's own, with what it says."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

LINES: Final = 200
# A server that a shell has put into the background ignores Ctrl-C, and so would this: it could not be stopped.
_PROGRAM: Final = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from pipelines.cli import main; main()"
)


class BatchRun:
    """`veca segment` in a process of its own; stopped, the same run goes on from where it was."""

    def __init__(self, images: Sequence[Path], model: str, out: Path, cores: int | None) -> None:
        self.out = out
        self.total = len(images)
        self.lines: deque[str] = deque(maxlen=LINES)
        command = [sys.executable, "-P", "-c", _PROGRAM, "segment"]
        command += ["--model", model, "--out", str(out), *(["--cores", str(cores)] if cores else [])]
        command += ["--", *map(str, images)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            errors="replace",
        )  # fmt: skip
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def status(self) -> int | None:
        """0 all done, 1 some failed, 2 called wrongly, 130 or below 0 stopped; None while it runs."""
        return self._process.poll()

    @property
    def started(self) -> int:
        """How many images it has begun with."""
        return sum(1 for line in self.lines if f"/{self.total}] " in line)

    def stop(self) -> None:
        """As Ctrl-C does: finished blocks stay."""
        if self.status is None:
            self._process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """Stops it and waits for its end."""
        self.stop()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._listener.join(10)

    def _listen(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as said:
            for line in said:
                self.lines.append(line.rstrip())
