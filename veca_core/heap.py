"""How this process asks for memory: large blocks in pages of their own, which go back as soon as they are freed."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

LARGE: Final = 8 * 2**20
"""Bytes from which a block gets pages of its own. On a heap, blocks of tens of megabytes leave holes that nothing fits
into, and a process takes a third more memory than it uses, or twice as much: nobody can tell."""
GROWN: Final = 32 * 2**20
"""Up to where glibc raises that limit by itself, where it is left alone (mallopt(3))."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""Of glibc's malloc.h."""
_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_PAGE: Final = 4096


def settle() -> int:
    """Sets the limit for this process, once and for good, and returns it: the largest block that comes from the heap.

    Fresh pages have to be zeroed. In pieces of 2 MiB that is quick (10 GB/s, where 4 KiB gave 1.4), and torch asks for
    such pages if a variable is set before it makes its first tensor. Where that is too late, or the system has none, or
    somebody has set the limit already, or memory is not glibc's, all stays as it is.
    """
    if platform.libc_ver()[0] != "glibc" or "MALLOC_MMAP_THRESHOLD_" in os.environ or not _huge_pages():
        return GROWN
    mallopt = ctypes.CDLL(None).mallopt
    # Or every free block at the heap's end would be given back and zeroed anew.
    return LARGE if mallopt(_M_TRIM_THRESHOLD, 4 * LARGE) and mallopt(_M_MMAP_THRESHOLD, LARGE) else GROWN


def _huge_pages() -> bool:
    """Whether torch will get large pages for large tensors, now that it is told to ask for them."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    torch = sys.modules.get("torch")
    # Not touched, so it costs nothing. A block of malloc's own has its length before it, and never starts a page.
    late = torch is not None and torch.empty(2 * GROWN, dtype=torch.uint8).data_ptr() % _PAGE
    with suppress(OSError):
        return not late and "[never]" not in _PAGES.read_text()
    return False


HEAPED: Final = settle()
"""Bytes of the largest block that comes from this process's heap."""
HOLES: Final = 1.0 if HEAPED == LARGE else 1.5
"""The heap's size over what is alive in it: aligned blocks do not fit the holes that blocks of their own size left.
Small blocks hardly matter; with large ones it was 1.2 to 2.2 in single processes with torch 2.14 and glibc 2.36."""
