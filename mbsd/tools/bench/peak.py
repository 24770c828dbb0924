"""The most memory that some work holds, measured: on a GPU by torch's allocator, on a CPU by the kernel."""

from __future__ import annotations

import ctypes
import gc
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# glibc's: each tensor gets pages of its own, which go when it goes. Else gaps between others count as held, as much
# again as is held where a model's activations come and go.
OWN_PAGES = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
FORGET_PEAK = "5"  # written to clear_refs: from now on VmHWM is the largest resident set since (proc(5))


@contextmanager
def tensors_have_pages() -> Iterator[None]:
    """Processes started inside (not forked) can be measured by `peak_bytes` to a few MB; they are slower."""
    before = {name: os.environ.get(name) for name in OWN_PAGES}
    os.environ.update(OWN_PAGES)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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
