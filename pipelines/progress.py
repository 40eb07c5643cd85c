"""What a long command tells while it works: one callable that takes a line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

Report = Callable[[str], None]


def quiet(line: str) -> None:
    """Says nothing: what a library call does unless asked otherwise."""


def to_stderr(line: str) -> None:
    """A plain line with the time of day."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {line}\n")
    sys.stderr.flush()
