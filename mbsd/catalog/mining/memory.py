"""What this process has freed goes back to the machine before an engine fills its own limit."""

from __future__ import annotations

import ctypes

import pyarrow as pa


def give_back_memory() -> None:
    """Return freed memory of pyarrow and, where the C library can, of Python to the system.

    A million items leave 0.2 GB behind, which would count beside the engine's limit until Python needs it again.
    """
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
