"""How fast the runs of a trial are here: the first steps of the real ones, with as many beside each other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median

from mbsd.config.run_files import DONE
from mbsd.tools.studies.commands import Command
from mbsd.tools.studies.spent import Spent
from mbsd.tools.studies.trial.commands import launcher_of, read_words, run_words, scoring_words, start_words
from mbsd.tools.studies.trial.plan import Speeds
from mbsd.tools.studies.trial.recipe import Kind, Machine, Precision, Recipe, RunRecipe
from mbsd.tools.studies.trial.settings import TASKS, Run

STEPS = 40
LOG_EVERY = 8  # the first part warms up and is not counted
SCORED = 2048  # rows at most
CPU_FLAGS = ("avx512_bf16", "amx_bf16")
QUICKER = 1.1  # bf16 is taken where it is so much quicker: float32 has the more exact numbers
COMPARED: Kind = "classification"


def has_bf16(cpu_info: str) -> bool:
    """Whether /proc/cpuinfo names instructions that multiply bf16."""
    words = set(cpu_info.split())
    return any(flag in words for flag in CPU_FLAGS)


def precisions(cpu_info: Path = Path("/proc/cpuinfo")) -> tuple[Precision, ...]:
    """The precisions that are worth a measurement on this machine."""
    there = cpu_info.exists() and has_bf16(cpu_info.read_text(encoding="utf-8"))
    return ("fp32", "bf16") if there else ("fp32",)


def folder_of(out: Path, kind: Kind, precision: Precision) -> Path:
    """Run folder of a measurement."""
    return out / "measured" / f"{kind}_{precision}"


def measuring(out: Path, recipes: Mapping[Precision, Recipe], settings: Mapping[str, Path]) -> Iterator[Command]:
    """A short run of each kind, of COMPARED in each precision, and a scoring.

    Args:
        settings: name of a DeepSpeed JSON -> the file.
    """
    tasks = tuple(kind for kind in TASKS if kind in recipes["fp32"].runs)
    for kind in sorted(recipes["fp32"].runs, key=lambda kind: kind != COMPARED):  # its precisions beside each other
        for precision, recipe in recipes.items():
            if precision == "fp32" or kind == COMPARED:
                run = Run("plain", kind, 0, tasks=tasks)
                yield _run(out, run, precision, recipe.runs[kind], settings[f"{kind}_{precision}"])
    run = Run("plain", COMPARED, 0)
    model = folder_of(out, COMPARED, "fp32")
    scores = out / "measured/scores.json"
    words = ("--model", model, "--out", scores, *read_words(run, out), *scoring_words(), "--bootstrap", 0,
             "--max_samples", SCORED)  # fmt: skip
    yield Command("measure_scores", scores, words, "evaluate", after=(f"measure_{COMPARED}_fp32",))


def _run(out: Path, run: Run, precision: Precision, recipe: RunRecipe, settings: Path) -> Command:
    folder = folder_of(out, run.kind, precision)
    words = (*run_words(recipe, settings, STEPS), "--run.dir", folder, "--run.log_every", LOG_EVERY,
             "--run.validate_every", 0, "--run.validate_samples", 64,
             *read_words(run, out), *start_words(recipe, None))  # fmt: skip
    return Command(f"measure_{run.kind}_{precision}", folder / DONE, words, launcher_of(run.kind), after=())


def remove_unfinished(commands: Iterable[Command], spent: Spent) -> None:
    """Remove what was measured in parts, or never counted: only a measurement in one go tells how long a start is."""
    counted = spent.commands()
    for command in commands:
        if command.name in counted and command.done.exists():
            continue
        folder = command.done.parent
        if command.done.name == DONE and folder.exists():
            shutil.rmtree(folder)
        command.done.unlink(missing_ok=True)
        spent.forget(command.name)


def seconds_of_step(run: Path, batch_size: int) -> float:
    """By the clock: the median over what a measurement logged, its first part left out."""
    return batch_size / median(_logged(run, "samples_per_s"))


def share_of_core(run: Path) -> float:
    """Of the one core that a rank of one thread has on an idle machine: what a measurement's steps got, likewise.

    How it started says nothing of that: on a machine that has not read its libraries before, it waits for the disk.
    """
    return min(1.0, median(_logged(run, "cpu_cores")))


def _logged(run: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line[key] for line in lines if key in line][1:]


def quicker(out: Path, recipes: Mapping[Precision, Recipe]) -> tuple[Precision, dict[str, float]]:
    """The precision to train in, and what a step takes in each."""
    steps = {
        precision: seconds_of_step(folder_of(out, COMPARED, precision), recipe.runs[COMPARED].batch_size)
        for precision, recipe in recipes.items()
    }
    better = "bf16" in steps and steps["fp32"] > QUICKER * steps["bf16"]
    return ("bf16" if better else "fp32"), {str(name): seconds for name, seconds in steps.items()}


def speeds(out: Path, recipes: Mapping[Precision, Recipe], machine: Machine, spent: Spent, scored: int) -> Speeds:
    """Seconds of a start, of a step of each kind, and of scoring a row, on cores that nobody else uses.

    A run on a busy machine gets a part of a core, and what it took by the clock is that much longer: seconds are
    multiplied by the share of a core that it got. In bf16 all kinds are taken to be quicker by as much as COMPARED.

    Args:
        scored: rows of `measure_scores`.
    """
    _, compared = quicker(out, recipes)
    ratio = compared[machine.precision] / compared["fp32"]
    took = spent.commands()
    steps, starts = {}, []
    for kind, run in recipes["fp32"].runs.items():
        folder = folder_of(out, kind, "fp32")
        by_clock, got = seconds_of_step(folder, run.batch_size), share_of_core(folder)
        seconds, _ = took[f"measure_{kind}_fp32"]
        steps[str(kind)] = by_clock * got * ratio
        starts.append(max(0.0, seconds - STEPS * by_clock) * got)
    seconds, _ = took["measure_scores"]
    of_scores = seconds * idle_share(out, recipes)
    return Speeds(min(starts), steps, max(0.0, of_scores - min(starts)) / scored)


def idle_share(out: Path, recipes: Mapping[Precision, Recipe]) -> float:
    """Of the clock's seconds, those that an idle machine would have taken: the median of the measurements' shares."""
    return median(share_of_core(folder_of(out, kind, "fp32")) for kind in recipes["fp32"].runs)
