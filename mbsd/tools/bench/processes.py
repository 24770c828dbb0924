"""Resources of a command and its descendants, measured from outside: a parent does not count a JVM that outlives it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

INTERVAL = 0.05  # seconds between two samples


@dataclass
class Usage:
    """What a command and its descendants used.

    Attributes:
        exit_code: None: it was stopped at the time limit.
        seconds, cpu_seconds: elapsed, and CPU time of all processes.
        peak_rss_bytes: largest sum of resident sets.
        peak_spill_bytes: largest size of the files in the spill folder.
        output: stdout and stderr.
    """

    exit_code: int | None
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    peak_spill_bytes: int
    output: str


def run_measured(words: Sequence[str], spill: Path, *, time_limit: float) -> Usage:
    """Run a command to its end and sample it and its descendants twenty times a second.

    CPU seconds are those of each process at its last sample, so up to a twentieth of a second per process is missing.

    Args:
        words: the command.
        spill: folder whose files are measured; the output is written beside it.
        time_limit: seconds after which the command and its descendants are killed.
    """
    started = time.monotonic()
    cpu: dict[int, float] = {}
    peak_rss = peak_spill = 0
    in_time = True
    log = spill.with_name(spill.name + ".log")
    with (
        log.open("w", encoding="utf-8") as output,
        psutil.Popen(list(words), stdout=output, stderr=subprocess.STDOUT) as child,
    ):
        try:
            while child.poll() is None and in_time:
                rss = 0
                for process in _family(child):
                    try:
                        used = process.cpu_times()
                        cpu[process.pid] = max(cpu.get(process.pid, 0.0), used.user + used.system)
                        rss += process.memory_info().rss
                    except psutil.Error:
                        continue  # it ended during the sample
                peak_rss, peak_spill = max(peak_rss, rss), max(peak_spill, _bytes(spill))
                in_time = time.monotonic() - started < time_limit
                time.sleep(INTERVAL)
        finally:
            for process in reversed(_family(child) if child.poll() is None else []):
                process.kill()
    return Usage(
        exit_code=child.returncode if in_time else None,
        seconds=time.monotonic() - started,
        cpu_seconds=sum(cpu.values()),
        peak_rss_bytes=peak_rss,
        peak_spill_bytes=peak_spill,
        output=log.read_text(encoding="utf-8", errors="replace"),
    )


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _bytes(folder: Path) -> int:
    total = 0
    for directory, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.stat(os.path.join(directory, file)).st_size
            except FileNotFoundError:
                continue  # the engine removed it during the sample
    return total
