"""What a traced run asked of its GPU: host waits, pageable copies, kernels (the trace is `run.profile`'s)."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mbsd.tools.gpu_check.figures import Figure, Value
from mbsd.training.profile import FOLDER

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
ATTENTION = ("flash", "fmha")  # in the names of torch's fused attention kernels
STEP = "ProfilerStep#"
KINDS = ("host_waits", "pageable_copies", "launches", "attention")


def traced(run: Path) -> dict[str, Figure]:
    """Figures of a run's traced steps, by kind.

    host_waits: calls of the training thread a step that wait for the GPU. pageable_copies: copies a step from memory
    that is not page-locked. launches: kernels a step. attention: the fused attention kernels by name.
    """
    found = sorted((run / FOLDER).glob("*.json*"))
    if not found:
        return {kind: Figure(None, reason="the run wrote no trace") for kind in KINDS}
    reader = gzip.open if found[0].suffix == ".gz" else open
    with reader(found[0], "rt", encoding="utf-8") as file:
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    steps = [event for event in events if str(event.get("name", "")).startswith(STEP) and "dur" in event]
    threads = {event["tid"] for event in steps if event.get("cat") == "user_annotation"}
    kernels = [event["name"] for event in events if event.get("cat") == "kernel"]
    if not kernels:
        return {kind: Figure(None, reason="the trace holds no kernel: CUPTI saw no GPU") for kind in KINDS}
    number = len({event["name"] for event in steps})
    waits = Counter(event["name"] for event in events if event.get("name") in WAITS and event.get("tid") in threads)
    copies = sum("Pageable" in str(event.get("name")) for event in events if event.get("cat") == "gpu_memcpy")
    values: dict[str, Value] = {
        "host_waits": sum(waits.values()) / number,
        "pageable_copies": copies / number,
        "launches": len(kernels) / number,
        "attention": ", ".join(sorted(_short(kernels))) or "none",
    }
    how = f"run.profile={number}" + "".join(f"; {count / number:g} {name}" for name, count in sorted(waits.items()))
    return {kind: Figure(value, how) for kind, value in values.items()}


def _short(kernels: Iterable[str]) -> set[str]:
    """The fused attention kernels, without template arguments."""
    plain = {name.split("<")[0].split("(")[0].removeprefix("void ") for name in kernels}
    return {name for name in plain if any(word in name for word in ATTENTION)}
