"""One of the processes of a test's team: `veca` in float32, where sums in another order differ least."""

from __future__ import annotations

import sys

import torch

import pipelines.steps
from pipelines.cli import main

if __name__ == "__main__":
    vars(pipelines.steps)["fast_precision"] = lambda device: torch.float32  # noqa: ARG005
    torch.set_num_threads(1)
    sys.argv[0] = "veca"
    main()
