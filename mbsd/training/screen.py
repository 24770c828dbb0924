"""What a run prints and writes when it starts and when it ends."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Sequence
from typing import Any

from mbsd.config.catalogs import PERIOD
from mbsd.config.deepspeed import precision, zero_stage
from mbsd.config.run import OptimConfig
from mbsd.config.run_files import DONE, PREEMPTED
from mbsd.config.schedules import peak_learning_rate
from mbsd.data.mixture import AnyOrder, MixedOrder
from mbsd.io.console import say_block
from mbsd.io.files import replace_text
from mbsd.training.checkpoints import Checkpoints
from mbsd.training.preempt import Stop
from mbsd.training.run import Run
from mbsd.training.state import TrainState


def print_start(run: Run, checkpoints: Checkpoints, origin: str, changed: Sequence[str], *, num_held_out: int) -> None:
    """Print one block about this start of the run, on rank 0.

    Args:
        checkpoints: restored.
        origin: where the weights come from, in words.
        changed: settings that the folder's last start had otherwise.
        num_held_out: samples of the validation split.
    """
    if not run.world.is_first:
        return
    schedule, model, config = checkpoints.parts.schedule, checkpoints.parts.model, run.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shape: Any = model.config
    sizes, resolved = run.sizes, schedule.deepspeed
    epochs = schedule.batches.samples_after(schedule.total_steps) / schedule.num_samples
    batches = " to ".join(str(each.global_batch) for _, each in schedule.batches.phases)
    optimizer = resolved["optimizer"]
    rate = peak_learning_rate(resolved, schedule.total_steps)
    facts = {
        "start": origin,
        "steps": f"{checkpoints.state.step + 1}-{schedule.total_steps} of {batches} samples "
        f"({run.world.size} ranks x {sizes.accumulation} x {sizes.micro_batch}): {epochs:.3g} epochs",
        "data": f"{schedule.num_samples:,} samples of {config.data.table or config.data.read_from}, "
        f"{num_held_out:,} held out",
        "model": f"{type(model).__name__}, {parameters / 1e6:.1f} M parameters: {shape.num_hidden_layers} layers of "
        f"{shape.hidden_size}, {shape.vocab_size:,} words, {shape.num_patches} patches",
        **({"asked": asked} if (asked := checkpoints.state.loader.builder.spec.asked) else {}),
        "training": f"{optimizer['type']}, lr {rate:g}{_parts(config.optim)}, ZeRO-{zero_stage(resolved)}, "
        f"{precision(resolved)}" + (f", weights averaged (run.ema={config.run.ema:g})" if config.run.ema else ""),
        "checkpoints": f"every {config.run.save_every} steps in {checkpoints.places}",
        "watch": f"tensorboard --logdir {run.folder}, page #custom_scalars",
    }
    if shares := _shares(checkpoints.state.loader.order, schedule.batches.samples_after(schedule.total_steps)):
        facts["mixture"] = shares
    if changed:
        facts["changed"] = "; ".join(changed)
    say_block(str(run.folder), facts)


def _shares(order: AnyOrder, samples: int) -> str:
    """Of several catalogues, the share of each and its epochs in a run of so many samples, in words; else ""."""
    if not isinstance(order, MixedOrder):
        return ""
    epochs = order.epochs_after(samples)
    return "; ".join(
        f"{source.name} {source.slots / PERIOD:.4g}, {epochs[source.name]:.3g} epochs of {source.order.num_samples:,}"
        for source in order.sources
    )


def _parts(optim: OptimConfig) -> str:
    """The rates of parts that are not the run's own, in words."""
    multiples = dataclasses.asdict(optim)
    others = [f"{part} x {multiple:g}" for part, multiple in multiples.items() if multiple not in (0, 1)]
    frozen = [part for part, multiple in multiples.items() if multiple == 0]
    said = [*([", ".join(others)] if others else []), *([f"frozen {' and '.join(frozen)}"] if frozen else [])]
    return f" ({'; '.join(said)})" if said else ""


def end_run(run: Run, state: TrainState, stop: Stop | None) -> None:
    """Write DONE, or PREEMPTED: with either the exit code is 0, and a launcher sees which it is."""
    if not run.world.is_first:
        return
    if stop is None:
        if state.early_stopping is not None:
            early = "" if state.at_last_step else f"stopped after step {state.step} of {state.total_steps}, "
            run.print(f"{run.folder}: {early}{state.early_stopping.describe()}")
        replace_text(run.folder / DONE, f"{state.step}\n")
        return
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    left = {"step": stop.step, "signal": stop.signal.name, "time": now}
    replace_text(run.folder / PREEMPTED, json.dumps(left) + "\n")
    run.print(
        f"{run.folder}: {stop.signal.name}: saved and stopped after step {stop.step} of {state.total_steps}; the same "
        "command resumes it"
    )
