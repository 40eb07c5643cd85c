"""What a long command tells while it works: one callable that takes a line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[str], None]


def quiet(line: str) -> None:
    """Says nothing: what a library call does unless asked otherwise."""


def to_stderr(line: str) -> None:
    """A plain line with the time of day."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {line}\n")
    sys.stderr.flush()


class ProgressBar:
    """Blocks done, with rate and time left, on a terminal; plain lines elsewhere."""

    def __init__(self, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.task = self.progress.add_task(unit, total=None)
        self.told = time.monotonic()

    def __enter__(self) -> ProgressBar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def say(self, line: str) -> None:
        """A line above the bar."""
        if self.console.is_terminal:
            self.console.print(line)
        else:
            to_stderr(line)

    def tick(self, done: int, total: int) -> None:
        """Moves the bar; without a terminal, tells now and then."""
        self.progress.update(self.task, completed=done, total=total)
        if not self.console.is_terminal and time.monotonic() - self.told > 30:
            self.told = time.monotonic()
            to_stderr(f"{done} of {total} blocks")


class Clock:
    """Wall-clock seconds of the named parts of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - started
