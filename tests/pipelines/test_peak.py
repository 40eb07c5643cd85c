"""The peak that run.json records is this process's own."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import torch

from pipelines.peak import peak_memory

CODE = "import torch; from pipelines.peak import peak_memory; print(peak_memory(torch.device('cpu')))"


def child() -> int:
    return int(subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], capture_output=True, check=True).stdout)


def test_a_process_does_not_count_what_the_one_that_started_it_held() -> None:
    lean = child()
    held = np.ones(512 * 2**20, dtype=np.uint8)
    assert peak_memory(torch.device("cpu")) > held.nbytes
    assert child() < lean + 64 * 2**20
