"""What a run folder records: resolved settings, environment, package versions."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import mbsd
from mbsd.config.deepspeed import precision, zero_stage
from mbsd.config.parse import dotted, to_yaml
from mbsd.config.run import BaseConfig
from mbsd.config.run_files import DONE, PREEMPTED
from mbsd.config.schedules import peak_learning_rate
from mbsd.io.files import replace_text
from mbsd.parallel.world import World, gather_objects


def write_run_folder(config: BaseConfig, resolved: dict[str, Any], folder: Path, world: World) -> None:
    """Write config.yaml, ds_config.json and environment.json at the start of a run (collective)."""
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else platform.processor() or "cpu"
    ranks = gather_objects({"host": platform.node(), "device": device})
    if not world.is_first:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for mark in (DONE, PREEMPTED):  # before the settings: with the new ones a finished run would look as asked for
        (folder / mark).unlink(missing_ok=True)
    environment = {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": packages(),
        "ranks": ranks,
    }
    replace_text(folder / "config.yaml", to_yaml(config))
    replace_text(folder / "ds_config.json", json.dumps(resolved, indent=1) + "\n")
    replace_text(folder / "environment.json", json.dumps(environment, indent=1) + "\n")


def run_settings(config: BaseConfig, resolved: dict[str, Any], total_steps: int) -> dict[str, bool | int | float | str]:
    """The settings by which runs differ, by dotted name: the YAML's, and DeepSpeed's that change what is learned."""
    settings = _plain(dotted(dataclasses.asdict(config)))
    optimizer = resolved["optimizer"]
    chosen = {
        "train_batch_size": resolved["train_batch_size"],
        "precision": precision(resolved),
        "zero_stage": zero_stage(resolved),
        "gradient_clipping": resolved.get("gradient_clipping", 1.0),
        "optimizer": optimizer["type"],
        "schedule": resolved.get("scheduler", {}).get("type", "none"),
        "peak_lr": peak_learning_rate(resolved, total_steps),
    }
    return settings | chosen | _plain(dotted(optimizer["params"], "optimizer."))


def _plain(settings: Iterable[tuple[str, Any]]) -> dict[str, bool | int | float | str]:
    """Settings as TensorBoard takes them: lists as text, what is not set left out."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(list(value))
        for name, value in settings
        if value is not None and value != {}
    }


def packages() -> dict[str, str]:
    """The versions that a run depends on."""
    names = ("torch", "deepspeed", "transformers", "torchvision", "numpy")
    # This package may run from a checkout that is not installed.
    return {"mbsd": mbsd.__version__} | {name: importlib.metadata.version(name) for name in names}
