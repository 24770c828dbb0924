"""What a run folder says about its run: resolved configs, environment, and how it ended."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from mbsd.config import BaseConfig, to_yaml
from mbsd.distributed import Place, gather_objects
from mbsd.engine.preempt import Stop
from mbsd.metrics.writer import say

DONE, PREEMPTED = "DONE", "PREEMPTED"  # finished; left early and well


def write_run_folder(config: BaseConfig, resolved: dict[str, Any], folder: Path, place: Place) -> None:
    """Write config.yaml, ds_config.json and environment.json at the start of a run (collective)."""
    device = torch.cuda.get_device_name(place.device) if place.device.type == "cuda" else platform.processor() or "cpu"
    ranks = gather_objects({"host": platform.node(), "device": device})
    if not place.is_first:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PREEMPTED).unlink(missing_ok=True)
    environment = {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": packages(),
        "ranks": ranks,
    }
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "ds_config.json").write_text(json.dumps(resolved, indent=1) + "\n")
    (folder / "environment.json").write_text(json.dumps(environment, indent=1) + "\n")


def packages() -> dict[str, str]:
    """The versions that a run depends on."""
    names = ("mbsd", "torch", "deepspeed", "transformers", "torchvision", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


def say_how_it_ended(folder: Path, stop: Stop | None, total_steps: int) -> None:
    """DONE, or PREEMPTED: with either the exit code is 0, and a launcher sees which it is."""
    if stop is None:
        (folder / DONE).write_text(f"{total_steps}\n")
        return
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    (folder / PREEMPTED).write_text(json.dumps({"step": stop.step, "signal": stop.signal.name, "time": now}) + "\n")
    say(
        f"{folder}: {stop.signal.name}: saved and stopped after step {stop.step} of {total_steps}; the same command "
        "goes on from there"
    )
