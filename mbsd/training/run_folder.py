"""What a run folder says about its run: resolved configs, environment, and how it ended."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from mbsd.config.deepspeed import BatchSizes, precision, zero_stage
from mbsd.config.parse import dotted, to_yaml
from mbsd.config.run import BaseConfig
from mbsd.config.run_files import DONE, PREEMPTED
from mbsd.io.console import say, say_block
from mbsd.parallel.world import World, gather_objects
from mbsd.training.preempt import Stop


def write_run_folder(config: BaseConfig, resolved: dict[str, Any], folder: Path, world: World) -> None:
    """Write config.yaml, ds_config.json and environment.json at the start of a run (collective)."""
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else platform.processor() or "cpu"
    ranks = gather_objects({"host": platform.node(), "device": device})
    if not world.is_first:
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


def say_start(
    folder: Path,
    config: BaseConfig,
    resolved: dict[str, Any],
    sizes: BatchSizes,
    model: Any,
    *,
    origin: str,
    steps: tuple[int, int],
    samples: tuple[int, int],
    world_size: int,
    storage: str,
) -> None:
    """One block on the screen that says what this start of the run does.

    Args:
        model: with its MbsdConfig.
        origin: where its weights come from.
        steps: the first and the last one to be done.
        samples: to train on, and held out.
        storage: where checkpoints go.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shape = model.config
    stage = zero_stage(resolved)
    epochs = (steps[1] * sizes.global_batch) / samples[0]
    optimizer = resolved["optimizer"]
    rate = optimizer["params"].get("lr")
    facts = {
        "start": origin,
        "steps": f"{steps[0]}-{steps[1]} of {sizes.global_batch} samples "
        f"({world_size} ranks x {sizes.accumulation} x {sizes.micro_batch}): {epochs:.3g} epochs",
        "data": f"{samples[0]:,} samples of {config.data.table or config.data.catalog}, {samples[1]:,} held out",
        "model": f"{type(model).__name__}, {parameters / 1e6:.1f} M parameters: {shape.num_hidden_layers} layers of "
        f"{shape.hidden_size}, {shape.vocab_size:,} words, {shape.num_patches} patches",
        "training": f"{optimizer['type']}{f', lr {rate:g}' if rate else ''}, ZeRO-{stage}, {precision(resolved)}",
        "checkpoints": f"every {config.run.save_every} steps in {storage}",
        "watch": f"tensorboard --logdir {folder}, page #custom_scalars",
    }
    say_block(str(folder), facts)


def run_settings(config: BaseConfig, resolved: dict[str, Any]) -> dict[str, bool | int | float | str]:
    """What sets runs apart, by dotted name: all of the YAML's settings, and DeepSpeed's that change what is learned."""
    settings = _plain(dotted(dataclasses.asdict(config)))
    optimizer = resolved["optimizer"]
    chosen = {
        "train_batch_size": resolved["train_batch_size"],
        "precision": precision(resolved),
        "zero_stage": zero_stage(resolved),
        "gradient_clipping": resolved.get("gradient_clipping", 0.0),
        "optimizer": optimizer["type"],
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
