"""`mbsd bench latency`: Fig. 8, milliseconds of a forward by batch size, of the image side and of whole models.

Models take turns, a step each, so that other load on the machine disturbs all of them alike; a ratio is the median over
turns of ratios within a turn. A cell's time is limited: slow models make fewer steps, and the table shows how many.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from mbsd.errors import UserError
from mbsd.parallel.devices import choose_device
from mbsd.parallel.launch_env import find_launch_environment
from mbsd.tools.bench.latency_models import (
    BARE,
    NAMES,
    PLAIN,
    QUERY,
    TITLE,
    Contestant,
    Step,
    make_contestant,
    runs_on,
    tokens_of,
)

TITLES = {"image": "image side", "whole": "whole model"}


@dataclass(frozen=True)
class LatencyBench:
    """What is measured.

    Attributes:
        batches: batch sizes.
        models: of NAMES; empty: all that run on the device.
        steps: timed steps of a cell (a model, a part of it and a batch size).
        seconds: time limit of a cell's steps together.
        threads: of torch and onnxruntime, on a CPU.
    """

    batches: tuple[int, ...]
    models: tuple[str, ...]
    steps: int
    seconds: float
    threads: int


@dataclass(frozen=True)
class Times:
    """Milliseconds of one step: elapsed (`wall`), and CPU time of all threads together (`cpu`)."""

    wall: float
    cpu: float


def measure_latency(bench: LatencyBench, contestants: Mapping[str, Contestant] | None = None) -> dict[str, Any]:
    """Measure, print a table and return its numbers.

    Args:
        contestants: measured instead of those that `bench.models` names.

    Returns:
        Device, settings and models, and `cells`: model, part, batch, steps, mean_ms, median_ms, p95_ms, cpu_ms (mean;
        all threads together), x_mbsd (ratio to plain MBSD, if that was measured) and x_bare (to a bare BERT encoder).

    Raises:
        UserError: an unknown model, or one that cannot run here.
    """
    unknown = [name for name in bench.models if name not in NAMES]
    if unknown:
        raise UserError(f"--models {unknown[0]}: expected some of {', '.join(NAMES)}")
    device, threads_before = choose_device(find_launch_environment(os.environ)), torch.get_num_threads()
    torch.set_num_threads(bench.threads)
    try:
        with tempfile.TemporaryDirectory(prefix="mbsd-bench-") as folder, torch.inference_mode():
            if contestants is None:
                runnable = [name for name in NAMES if runs_on(name, device)]
                named = tqdm(bench.models or runnable, desc="models", leave=False)
                contestants = {name: make_contestant(name, device, bench.threads, Path(folder)) for name in named}
            cells = []
            for batch in bench.batches:
                for part in TITLES:
                    steps = _steps(contestants, part, batch)
                    measured = measure_in_turns(bench, steps, part, batch, device)
                    cells += measured
                    means = ", ".join(f"{cell['model']} {_ms(cell['mean_ms'])} ms" for cell in measured)
                    tqdm.write(f"{TITLES[part]}, batch {batch}: {means}", file=sys.stderr)
    finally:
        torch.set_num_threads(threads_before)
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": bench.threads,
        "title_words": TITLE,
        "query_words": QUERY,
        "image_size": 224,
        "torch": torch.__version__,
        "models": {
            name: {"parameters": made.parameters, "tokens": tokens_of(name)} for name, made in contestants.items()
        },
        "cells": cells,
    }
    _print(result, bench)
    return result


def _steps(contestants: Mapping[str, Contestant], part: str, batch: int) -> dict[str, Step]:
    made = {}
    torch._dynamo.reset()  # drops what was compiled for the batch size before
    for name, contestant in contestants.items():
        make = contestant.whole if part == "whole" else contestant.image
        if make is not None:
            made[name] = make(batch)
    return made


def measure_in_turns(
    bench: LatencyBench, steps: Mapping[str, Step], part: str, batch: int, device: torch.device
) -> list[dict[str, Any]]:
    """The cells of one part and batch size."""
    timed = _on_gpu if device.type == "cuda" else _on_cpu
    turns: dict[str, dict[int, Times]] = {name: {} for name in steps}
    spent = dict.fromkeys(steps, 0.0)
    warm = {}
    for name, step in steps.items():
        first = timed(step)  # it allocates and compiles, so its time is no estimate
        second = timed(step) if first.wall < 1e3 * bench.seconds or name.startswith("mbsd-compiled") else first
        warm[name] = second
    for turn in tqdm(range(bench.steps), desc=f"{part}, batch {batch}", leave=False):
        for name, step in steps.items():
            if spent[name] + warm[name].wall / 1e3 <= bench.seconds:
                turns[name][turn] = timed(step)
                spent[name] += turns[name][turn].wall / 1e3
    for name, found in turns.items():
        if not found:  # the limit allows no second step
            found[0] = warm[name]
    return [_cell(name, turns, part, batch) for name in steps]


def _cell(name: str, turns: Mapping[str, Mapping[int, Times]], part: str, batch: int) -> dict[str, Any]:
    mine = turns[name]
    wall = np.array([times.wall for times in mine.values()])
    cell = {
        "model": name,
        "part": part,
        "batch": batch,
        "steps": len(mine),
        "mean_ms": float(wall.mean()),
        "median_ms": float(np.median(wall)),
        "p95_ms": float(np.percentile(wall, 95)),
        "cpu_ms": statistics.fmean(times.cpu for times in mine.values()),
    }
    for key, other in (("x_mbsd", PLAIN), ("x_bare", BARE)):
        shared = [turn for turn in mine if turn in turns.get(other, {})]
        if shared and other != name:
            cell[key] = statistics.median(mine[turn].wall / turns[other][turn].wall for turn in shared)
            cell[f"{key}_cpu"] = statistics.median(
                mine[turn].cpu / max(turns[other][turn].cpu, 1e-6) for turn in shared
            )
    return cell


def _on_cpu(step: Step) -> Times:
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    return Times(1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu))


def _on_gpu(step: Step) -> Times:
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    cpu = time.process_time()
    began.record()
    step()
    ended.record()
    torch.cuda.synchronize()
    return Times(began.elapsed_time(ended), 1e3 * (time.process_time() - cpu))


def _print(result: Mapping[str, Any], bench: LatencyBench) -> None:
    console = Console(width=50 + 32 * len(bench.batches), soft_wrap=True)  # a narrower table would cut the numbers
    for part in TITLES:
        table = Table(title=f"{TITLES[part]}: ms of a step, mean / p95 (x mbsd)")
        table.add_column("model", no_wrap=True)
        for heading in ("M parameters", "tokens", *(f"batch {batch}" for batch in bench.batches)):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, facts in result["models"].items():
            found = {cell["batch"]: cell for cell in result["cells"] if (cell["model"], cell["part"]) == (name, part)}
            if found:
                shown = [_shown(found[batch], bench.steps) for batch in bench.batches]
                table.add_row(name, f"{facts['parameters'] / 1e6:.0f}", str(facts["tokens"]), *shown)
        if table.row_count:
            console.print(table)
    console.print(
        f"query of {QUERY} words, title of {TITLE}, picture of 224 pixels; {result['device']}, {bench.threads} threads;"
        f" {bench.steps} steps, or as many as {bench.seconds:g} s allow: their number stands in brackets"
    )


def _shown(cell: Mapping[str, Any], steps: int) -> str:
    text = f"{_ms(cell['mean_ms'])} / {_ms(cell['p95_ms'])}"
    if "x_mbsd" in cell:
        text += f" ({cell['x_mbsd']:.2f}x)"
    return text if cell["steps"] == steps else f"{text} [{cell['steps']}]"


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
