"""Where the network runs: devices by name, the memory that is free there, and amounts of it as people write them."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Final

import psutil
import torch

from pipelines.errors import RequestError

OWN_GROUPS: Final = Path("/proc/self/cgroup")
"""The control groups of this process, a line each: number:controllers:/name."""
GROUPS_V2: Final = Path("/sys/fs/cgroup")
GROUPS_V1: Final = Path("/sys/fs/cgroup/memory")
UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def choose_device(name: str) -> torch.device:
    """'auto' takes a CUDA device where there is one; raises RequestError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise RequestError(f"there is no device {name!r}; write auto, cpu, cuda or cuda:1, or mps")
    if name == "mps" and not torch.backends.mps.is_available():
        raise RequestError("mps was asked for, but torch sees no Apple GPU here; write auto or cpu")
    if name.startswith("cuda"):
        index = int(name.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            raise RequestError(f"{name} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device; on a CPU the less of what the machine and its control groups leave."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, and unused
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return min(psutil.virtual_memory().available, _cgroup_free())


def parse_bytes(text: str) -> int:
    """Reads '6GiB', '800M' or '1.5 GB' (all powers of 1024); raises RequestError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    amount = float(match[1]) * UNITS[match[2].upper()] if match else 0.0
    if not 1 <= amount < 2**63:
        raise RequestError(f"cannot read {text!r} as an amount of memory; write a number and a unit, like 6GiB")
    return int(amount)


def format_bytes(count: int) -> str:
    """Bytes for people: '1.5 GiB'."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


@functools.cache
def resident() -> int:
    """Bytes that this process held when it was first asked, its libraries and the loaded model among them.

    Asked once: what an earlier image left behind is used again, and what pieces beside this one hold comes and goes;
    neither may change a plan.
    """
    return int(psutil.Process().memory_info().rss)


def _cgroup_free(own: Path = OWN_GROUPS, v2: Path = GROUPS_V2, v1: Path = GROUPS_V1) -> int:
    """Bytes that the control groups of this process, and all above them, still allow; unlimited where none is set."""
    groups = _memory_groups(own)
    return min((_room(folder) for root, name in ((v2, groups[0]), (v1, groups[1])) for folder in _upwards(root, name)))


def _memory_groups(own: Path) -> tuple[str, str]:
    """Names of the groups that bound this process's memory, of version 2 and of version 1; roots where nothing says."""
    names = ["/", "/"]
    for line in own.read_text(encoding="utf-8").splitlines() if os.access(own, os.R_OK) else ():
        number, controllers, name = line.split(":", 2)
        if number == "0" or "memory" in controllers.split(","):
            names[number != "0"] = name
    return names[0], names[1]


def _upwards(root: Path, name: str) -> list[Path]:
    """The folder of a group, those of the groups above it, and the root. A container may see the root alone."""
    parts = name.strip("/").split("/")
    return [root.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _room(group: Path) -> int:
    """Bytes that one group still allows; unlimited where it has no bound."""
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        if os.access(group / limit, os.R_OK) and os.access(group / used, os.R_OK):
            allowed = (group / limit).read_text(encoding="ascii").strip()
            if allowed.isdigit():
                held = int((group / used).read_text(encoding="ascii")) - _page_cache(group / "memory.stat")
                return max(0, int(allowed) - held)
    return 2**63


def _page_cache(stat: Path) -> int:
    """Bytes of files that the kernel keeps and gives back when they are needed: counted as used, but free."""
    if not os.access(stat, os.R_OK):
        return 0
    rows = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
    return int(rows.get("total_inactive_file", rows.get("inactive_file", 0)))
