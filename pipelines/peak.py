"""How much memory this process has used at most."""

from __future__ import annotations

import sys

import psutil
import torch


def peak_memory(device: torch.device) -> int:
    """Bytes: the device's own peak on a GPU, the largest resident size of this process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
