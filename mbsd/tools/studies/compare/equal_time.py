"""Equal pre-training time: the first steps of each stage are measured, and from them follows how many each gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mbsd.errors import UserError
from mbsd.io.files import read_own_json
from mbsd.io.settings_text import read_yaml
from mbsd.tools.studies.commands import Command
from mbsd.tools.studies.compare.plan import Steps, pretraining
from mbsd.tools.studies.compare.settings import CompareConfig, ComparedModel, ComparedTables
from mbsd.tools.studies.launches import Launch, run_launches
from mbsd.tools.studies.runner import Runner
from mbsd.tools.studies.settings_files import same_settings
from mbsd.tools.studies.trial.measure import remove_unfinished, seconds_of_step, share_of_core

PARTS = 4  # of a measurement's steps are logged; the first warms up and is not counted


def equal_steps(config: CompareConfig, tables: ComparedTables, runner: Runner) -> Steps:
    """How many optimizer steps each stage of each model gets; nothing where `config.minutes` is not set.

    What was measured once is written to `settings/steps`, and a later start takes it from there.

    Raises:
        UserError: the study was begun with other minutes.
    """
    out = Path(config.out)
    same_settings(out, "minutes", {"minutes": config.minutes, "measure_steps": config.measure_steps}, "out")
    if config.minutes is None:
        return {}
    files = [(model, out / "settings/steps" / f"{model.key}.yaml") for model in config.chosen_models if model.pretrain]
    unknown = [model for model, file in files if not file.exists()]
    if unknown:
        launches = [launch for model in unknown for launch in measuring(config, tables, model)]
        remove_unfinished([Command(launch.name, launch.done, ()) for launch in launches], runner.spent)
        run_launches(runner, out, launches, "out")
        for model in unknown:
            _write(config, model)
    found: dict[tuple[str, int], int] = {}
    for model, file in files:
        steps = read_yaml(file)
        if len(steps) != len(model.pretrain):
            raise UserError(
                f"{file}: is of {len(steps)} stages, and {model.name} has {len(model.pretrain)} now; set them back, "
                "or choose another out"
            )
        found |= {(model.key, number): of_stage["steps"] for number, of_stage in enumerate(steps.values(), 1)}
    return found


def measuring(config: CompareConfig, tables: ComparedTables, model: ComparedModel) -> Iterator[Launch]:
    """The short runs of a model's stages."""
    count = config.measure_steps
    settings = {
        "run.seed": 0, "run.max_steps": count, "run.epochs": None, "run.log_every": max(1, count // PARTS),
        "run.validate_every": 0, "run.validate_samples": 64,
    }  # fmt: skip
    yield from pretraining(config, tables, model, (f"measured/{model.key}", settings), {})


def _write(config: CompareConfig, model: ComparedModel) -> None:
    """Seconds of a step, and the steps that follow from the minutes."""
    assert config.minutes is not None
    whole = sum(stage.share for stage in model.pretrain)
    found = {}
    for number, stage in enumerate(model.pretrain, 1):
        seconds = _idle_seconds(config, f"measured/{model.key}/pretrain-{number}")
        steps = max(1, round(60 * config.minutes * stage.share / whole / seconds))
        found[f"pretrain-{number}"] = {"seconds_of_step": seconds, "steps": steps}
    same_settings(Path(config.out), f"steps/{model.key}", found, "out")


def _idle_seconds(config: CompareConfig, name: str) -> float:
    """Of a step. On CPUs, of cores that nobody else uses: a busy machine would give a model fewer steps by chance."""
    run = Path(config.out) / name
    batch = read_own_json(run / "ds_config.json", "remove its folder: it is measured again")["train_batch_size"]
    seconds = seconds_of_step(run, batch)
    return seconds if config.launch.cpu_ranks is None else seconds * share_of_core(run)
