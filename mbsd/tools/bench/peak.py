"""The most memory that some work holds, measured: on a GPU by torch's allocator, on a CPU by the kernel."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

import torch

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
    ctypes.CDLL(None).malloc_trim(0)  # or what others have freed would be used again, unseen
    Path("/proc/self/clear_refs").write_text(FORGET_PEAK, encoding="ascii")
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None, f"/proc/self/status has no {name}"
    return int(found[1]) * 1024
