"""The most memory that some work holds, measured: on a GPU by torch's allocator, on a CPU by the kernel."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

import torch

MMAP_THRESHOLD = -3  # glibc's malloc.h: blocks from so many bytes on get pages of their own
SMALL_BLOCK, LARGEST_THRESHOLD = 1 << 16, 32 << 20
FORGET_PEAK = "5"  # written to clear_refs: from now on VmHWM is the largest resident set since (proc(5))


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Bytes that `work` holds at its most beyond what was held before; of this process, on Linux."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    malloc = ctypes.CDLL(None)
    # Tensors in pages of their own: what has been freed is gone, and no gap between others counts as held.
    malloc.mallopt(MMAP_THRESHOLD, SMALL_BLOCK)
    malloc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text(FORGET_PEAK, encoding="ascii")
    before = _resident("VmRSS")
    work()
    peak = _resident("VmHWM")
    malloc.mallopt(MMAP_THRESHOLD, LARGEST_THRESHOLD)  # where glibc itself arrives in a process with large tensors
    return peak - before


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None, f"/proc/self/status has no {name}"
    return int(found[1]) * 1024
