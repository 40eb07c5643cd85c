"""Large blocks go back to the system, in processes of their own: what an allocator does is set once for a process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from veca_core.heap import GROWN, LARGE

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no such limit")
PLAIN = "from veca_core.heap import HEAPED, HOLES; print(HEAPED, HOLES)"
MEASURE = """
import torch, psutil
from veca_core.heap import LARGE
resident = lambda: psutil.Process().memory_info().rss
torch.zeros(2 * LARGE, dtype=torch.uint8)
before = resident()
blocks = [torch.ones(LARGE + 2**20 * i, dtype=torch.uint8) for i in range(10)]
small = [torch.ones(1000, dtype=torch.uint8) for _ in range(10)]
full = resident()
del blocks[::2]
print(before, full, resident())
"""


def said(code: str, **environment: str) -> list[float]:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "THP_"))}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env={**known, **environment}, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def settles() -> bool:
    """Whether this machine has large pages at all."""
    return said(PLAIN)[0] == LARGE


def test_the_limit_is_set_before_torch_is_loaded_and_after_it() -> None:
    if not settles():
        pytest.skip("this system has no large pages")
    assert said("import torch;" + PLAIN) == [LARGE, 1.0]
    assert said(PLAIN, MALLOC_TRIM_THRESHOLD_="65536") == [LARGE, 1.0], "as the processes of a Dask cluster have it"


def test_the_limit_is_left_alone_where_it_would_cost_time_or_is_set() -> None:
    assert said("import torch; torch.ones(3);" + PLAIN) == [GROWN, 1.5], "torch has read its settings"
    assert said(PLAIN, MALLOC_MMAP_THRESHOLD_="1000000") == [GROWN, 1.5]


def test_what_is_freed_goes_back_in_whatever_order() -> None:
    if not settles():
        pytest.skip("this system has no large pages")
    before, full, after = said(MEASURE)
    taken = sum(LARGE + 2**20 * i for i in range(10))
    left = sum(LARGE + 2**20 * i for i in range(1, 10, 2))
    assert abs(full - before - taken) < 4 * 2**20
    assert abs(after - before - left) < 4 * 2**20
