"""What a long command tells while it works: one callable that takes a line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

Report = Callable[[str], None]
Item = TypeVar("Item")


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
    """Wall-clock seconds of the named parts of a run. What a part counts is not counted again by one around it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started, counted = time.monotonic(), sum(self.seconds.values())
        try:
            yield
        finally:
            meanwhile = sum(self.seconds.values()) - counted
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - started - meanwhile

    def through(self, part: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items; the time that each takes to come is counted."""
        coming = iter(items)
        while True:
            with self(part):
                item = next(coming, _END)
            if isinstance(item, _End):
                return
            yield item

    def add(self, seconds: Mapping[str, float]) -> None:
        """Counts what another clock has counted."""
        for part, value in seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + value

    def shares(self, *parts: str) -> dict[str, float]:
        """What part of the time that these took together each of them took; nothing before any time has passed."""
        total = sum(self.seconds.get(part, 0.0) for part in parts)
        return {part: round(self.seconds.get(part, 0.0) / total, 4) for part in parts} if total else {}


class _End:
    """Behind the last item."""


_END = _End()
