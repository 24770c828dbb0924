"""What a start asks of a run folder, beside what the folder was trained with: equal, more, or something else."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mbsd.checkpoint import store
from mbsd.config.catalogs import CatalogConfig, slots_of
from mbsd.config.deepspeed import AUTO, DeepSpeedConfig
from mbsd.config.parse import dotted
from mbsd.config.paths import path_names
from mbsd.config.run import BaseConfig, RunConfig
from mbsd.config.run_files import DONE
from mbsd.errors import UserError
from mbsd.io.settings_text import read_json, read_yaml
from mbsd.optim.groups import learning_rates
from mbsd.training.run import Run
from mbsd.training.state import TrainState

# Settings that change neither what is learned nor what is measured: where and how often a run writes, how it is fed,
# when it gives up. A finished folder is not refused for them.
WITHOUT_EFFECT = {
    "run.dir", "run.log_every", "run.save_every", "run.keep_last", "run.keep_every", "run.node_local_checkpoints",
    "run.mirror", "run.mirror_wait", "run.profile", "run.timeout", "run.max_skipped_steps", "run.extend",
    "run.deterministic", "data.num_workers", "data.prefetch", "data.max_corrupt", "data.token_bucket",
    "data.cache", "data.cache_gb", "model.activation_checkpointing", "model.compile",
}  # fmt: skip
# The same of DeepSpeed's JSON: how a batch is cut and who holds which slice changes rounding alone.
DEEPSPEED_WITHOUT_EFFECT = {
    "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "zero_optimization", "steps_per_print", "timers",
    "wall_clock_breakdown", "memory_breakdown", "dump_state", "disable_python_gc", "comms_logger", "log_level",
    "zero_allow_untested_optimizer", "disable_allgather", "bf16.check_grad_overflow",
}  # fmt: skip
LENGTH = ("run.max_steps", "run.epochs")
CATALOGS = "data.catalogs"
PATHS = set(path_names(BaseConfig))
NOT_SET = "not set"
SHOWN = 4  # changes that a message names


class Change(NamedTuple):
    """A setting that is another one than the folder was trained with."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        """In a message."""
        return f"{self.name} was {self.before}, now {self.now}"


def changes(config: BaseConfig, ds_config: DeepSpeedConfig, folder: Path) -> list[Change]:
    """The settings that differ from a run folder's config.yaml and ds_config.json and can change a result.

    Raises:
        UserError: one of these files is missing or unreadable.
    """
    defaults = dict(dotted(dataclasses.asdict(_with_defaults(config))))
    before, now = dict(dotted(read_yaml(folder / "config.yaml"))), dict(dotted(dataclasses.asdict(config)))
    found = []
    for name in sorted(before.keys() | now.keys()):
        # A setting that is newer than the folder has had its default.
        old, new = before.get(name, defaults.get(name)), now.get(name)
        if name not in WITHOUT_EFFECT and not _same(name, old, new):
            found.append(Change(name, _shown(old), _shown(new)))
    return found + _deepspeed_changes(ds_config, read_json(folder / "ds_config.json"), config.run)


def is_asked_again(run: Run) -> bool:
    """Whether a finished run's folder is asked for what it was finished with; False: `run.extend` lets it go on.

    Raises:
        UserError: it is asked for something else; the message names the settings.
    """
    config, folder = run.config, run.folder
    found = changes(config, run.ds_config, folder)
    if not found:
        return True
    if config.run.extend and any(change.name in LENGTH for change in found):
        return False
    listed = "; ".join(map(str, found[:SHOWN])) + (f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
    way_on = "set them back, or choose another run.dir"
    if all(change.name in LENGTH and _is_more(change) for change in found):
        way_on = (
            "set run.extend=true to train it for longer (its schedule is then laid out anew over all steps), or choose "
            "another run.dir"
        )
    raise UserError(f"{folder}: is a finished run of other settings ({listed}): {way_on}")


def refuse_nothing_left(run: Run, total_steps: int, checkpoints: Path) -> None:
    """Refuse a start whose checkpoint has all the steps that are asked for, before anything is written.

    A run that was ended between its last save and `DONE` has the settings that its folder says: it is let through.

    Raises:
        UserError: no step is left.
    """
    config, folder = run.config.run, run.folder
    own = store.folders(checkpoints)
    if own:
        step = store.step_of(own[0])
        if step < total_steps or (step == total_steps and not (folder / DONE).exists() and _ended_so(run)):
            return
        source = str(folder)
    elif config.resume != "auto":
        path = Path(config.resume)
        elsewhere = [path] if store.is_step(path) else store.folders(store.root_of(config.resume))
        if not elsewhere or store.step_of(elsewhere[0]) < total_steps:
            return
        step, source = store.step_of(elsewhere[0]), f"run.resume={config.resume}"
    else:
        return
    asked = f"run.max_steps={total_steps}" if config.max_steps else f"run.epochs={config.epochs}, {total_steps} steps"
    raise UserError(
        f"{source}: its checkpoint is of step {step}, and {asked}: nothing left to train; ask for more steps, or begin "
        "anew from its weights, with run.init_from, in another run.dir"
    )


def refuse_exhausted(state: TrainState, folder: Path) -> None:
    """Refuse to train a finished run for longer that early stopping has ended.

    Raises:
        UserError: its patience is exhausted; on every rank.
    """
    if state.finished:
        raise UserError(
            f"{folder}: early stopping ended this run after step {state.step} (best.patience): nothing left to train; "
            "set best.patience higher, or 0, to train it for longer",
            shared=True,
        )


def schedule_laid_anew(engine: Any, resolved: Mapping[str, Any], state: TrainState, before: float) -> str:
    """What becomes of the learning rate where a finished run goes on, in words.

    Args:
        engine: with the checkpoint's state.
        resolved: DeepSpeed's JSON now.
        before: the rate that the run as it was finished had come to.
    """
    step, total = state.step, state.total_steps
    scheduler = resolved.get("scheduler")
    rate = learning_rates(engine.optimizer.param_groups)["lr"]
    laid = f"{scheduler['type']} is laid out anew over {total} steps" if scheduler is not None else "no schedule"
    return (
        f"run.extend: the finished run is trained after step {step} to {total}; {laid}: the learning rate of step "
        f"{step + 1} is {rate:.4g}; as it was finished it had come to {before:.4g}"
    )


def changed_since(run: Run) -> list[str]:
    """The settings that differ from those of the folder's last start; none where it says nothing about them."""
    try:
        return [str(change) for change in changes(run.config, run.ds_config, run.folder)]
    except UserError:
        return []


def _ended_so(run: Run) -> bool:
    try:
        return not any(change.name in LENGTH for change in changes(run.config, run.ds_config, run.folder))
    except UserError:
        return False  # settings of an older version or none: the folder does not say that it is the same run


def _with_defaults(config: BaseConfig) -> BaseConfig:
    """A config of the same kind in which everything that has a default has it."""
    kept = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    for name, section in kept.items():
        needed = {
            field.name: getattr(section, field.name)
            for field in dataclasses.fields(section)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }
        kept[name] = type(section)(**needed)
    return type(config)(**kept)


def _deepspeed_changes(ds_config: DeepSpeedConfig, before: dict[str, Any], run: RunConfig) -> list[Change]:
    then = (before.get("scheduler") or {}).get("params", {})
    total = then.get("total_num_steps") or run.max_steps
    now = ds_config.settled(total or 1)
    given = (ds_config.tree.get("scheduler") or {}).get("params", {})
    skipped = {*DEEPSPEED_WITHOUT_EFFECT, "scheduler.params.total_num_steps"}  # the settings say it: LENGTH
    if "total_num_steps" not in then and given.get("warmup_num_steps") in AUTO:
        skipped.add("scheduler.params.warmup_num_steps")  # it follows from a number of steps that is not known here
    old, new = (
        {
            name: value
            for name, value in dotted(tree)
            if value is not None and name.split(".")[0] not in skipped and name not in skipped
        }
        for tree in (before, json.loads(json.dumps(now)))
    )
    return [
        Change(name, old.get(name, NOT_SET), new.get(name, NOT_SET))
        for name in sorted(old.keys() | new.keys())
        if old.get(name, NOT_SET) != new.get(name, NOT_SET)
    ]


def _is_more(change: Change) -> bool:
    """False: fewer steps or epochs; steps and epochs in place of each other may be more."""
    return NOT_SET in (change.before, change.now) or change.now > change.before


def _same(name: str, old: Any, new: Any) -> bool:
    if name in PATHS and isinstance(old, str) and isinstance(new, str):
        return old == new or os.path.realpath(old) == os.path.realpath(new)
    if name == CATALOGS and old is not None and new is not None:
        return _drawn_from(old) == _drawn_from(new)
    return bool(json.loads(json.dumps(old)) == json.loads(json.dumps(new)))


def _drawn_from(catalogs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    """Of each catalogue where it lies, its name and its share of the samples: weights 7 and 3 are as 0.7 and 0.3."""
    read = [CatalogConfig(**one) for one in catalogs]
    return [(os.path.realpath(one.path), one.known_as, slots) for one, slots in zip(read, slots_of(read), strict=True)]


def _shown(value: Any) -> Any:
    return NOT_SET if value is None or value == {} else value
