"""Damage to files, as a disk does it."""

from __future__ import annotations

import os
from pathlib import Path


def damage(path: Path, at: float = 0.5) -> None:
    """One bit of the byte at this share of the file falls over; its size and the time of its change stay."""

    status = path.stat()
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 16
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
