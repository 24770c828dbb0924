"""`mbsd trial`: what a small model learns from a shop's own items, beside floors; by commands that a user would type.

Titles often name the category and the colour that the tasks ask for. So everything is done twice, with titles as they
are and with titles from which these words are removed, and each view is scored by itself.

First the tables and floors are made, then the first steps of the runs are measured, and from these follows a plan that
fits into the minutes. It is written to `plan.yaml` once: a trial that was interrupted goes on by the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import read_items
from mbsd.catalog.tables import Table
from mbsd.errors import UserError
from mbsd.io.files import replace_text
from mbsd.io.settings_text import read_yaml
from mbsd.tools.studies.commands import ROOT, Command, LaunchConfig, num_cores
from mbsd.tools.studies.runner import Runner, start_runner
from mbsd.tools.studies.settings_files import same_settings, write_deepspeed
from mbsd.tools.studies.trial.commands import data_commands, evaluations, training
from mbsd.tools.studies.trial.measure import (
    SCORED,
    idle_share,
    measuring,
    precisions,
    quicker,
    remove_unfinished,
    speeds,
)
from mbsd.tools.studies.trial.page import page_of
from mbsd.tools.studies.trial.plan import Lengths, given_lengths, left_for_training, lengths_within
from mbsd.tools.studies.trial.recipe import (
    LEAST_TRAINING,
    CatalogFacts,
    Kind,
    Machine,
    Precision,
    Recipe,
    RunRecipe,
    recipe,
    with_text_model,
)
from mbsd.tools.studies.trial.settings import TASKS, Trial, runs_of
from mbsd.tools.studies.trial.table import tabulate, width
from mbsd.tools.studies.trial.text_model import text_model_folder
from mbsd.tools.studies.trial_report.page import write_trial_page

PLAN = "plan.yaml"


@dataclass(frozen=True)
class Plan:
    """What is going to be trained, as `plan.yaml` has it.

    Attributes:
        said: the lines about it.
    """

    said: list[str]
    recipe: Recipe
    lengths: Lengths

    @classmethod
    def read(cls, path: Path) -> Plan:
        """The plan of an earlier start."""
        tree = read_yaml(path)
        runs: dict[Kind, RunRecipe] = {kind: RunRecipe(**run) for kind, run in tree["runs"].items()}
        return cls(tree["said"], Recipe(runs), Lengths(**tree["lengths"]))

    def write(self, path: Path, measured: dict[str, Any]) -> None:
        """Write it, with what it follows from."""
        runs = {kind: asdict(run) for kind, run in self.recipe.runs.items()}
        tree = {"said": self.said, "lengths": asdict(self.lengths), "measured": measured, "runs": runs}
        replace_text(path, yaml.safe_dump(json.loads(json.dumps(tree)), sort_keys=False, width=120))


@dataclass(frozen=True)
class Place:
    """Where a trial works: its folder, what runs its commands, and the processes of each training run."""

    out: Path
    runner: Runner
    ranks: int


def run_trial(trial: Trial, out: Path, launch: LaunchConfig) -> None:
    """Build, plan, train, score and tabulate below `out`; what is there already is not done again.

    Raises:
        UserError: `out` holds a trial with other settings, or the items lack what a trial reads.
    """
    trial.check()
    _check_items(trial)
    ranks = launch.cpu_ranks or 1
    same_settings(out, "trial", json.loads(json.dumps(asdict(trial))), "--out")
    jobs = Machine(num_cores(), ranks, "fp32").jobs(trial.chains)
    place = Place(out.resolve(), start_runner(out, launch, width(trial), jobs), ranks)
    spent = place.runner.spent
    try:
        with spent.counted():
            place.runner.run(list(data_commands(trial, place.out)))
            plan = _plan(trial, place)
            for line in plan.said:
                place.runner.console.print(line, markup=False, highlight=False, style="bold")
            place.runner.run(list(_training_commands(trial, place, plan)))
            tabulate(place.runner.console, trial, out)
            write_trial_page(page_of(trial, out), out / "trial.html")
            place.runner.console.print(str(out / "trial.html"), markup=False, highlight=False)
    finally:
        wall, cpu = spent.wall_and_cpu()
        place.runner.console.print(
            f"{wall / 60:.1f} minutes by the clock, {cpu / 60:.1f} CPU minutes, all starts of this trial together",
            markup=False, highlight=False,
        )  # fmt: skip


def _check_items(trial: Trial) -> None:
    """Refuse items of which none has a picture, a category or an attribute, before anything is built of them."""
    items = read_items(Path(trial.source), trial.columns)
    lacking = {"title", "image", "category", *(("attributes",) if "attributes" in trial.tasks else ())}
    for item in items:
        lacking -= {name for name in lacking if getattr(item, name)}
        if not lacking:
            return
    raise UserError(
        f"{trial.source}: no item has anything in {', '.join(sorted(lacking))}; a trial reads the columns title, "
        "image, category and, without --no-attributes, attributes (name: value); give --column OURS=NAME where one "
        "has another name"
        f"{''.join(f'; {note}' for note in items.notes())}"
    )


def _training_commands(trial: Trial, place: Place, plan: Plan) -> Iterator[Command]:
    """Every run, with its scores behind it."""
    for run in runs_of(trial):
        settings = _deepspeed_file(place, run.kind)
        yield training(run, place.out, plan.recipe.runs[run.kind], plan.lengths.of(run), settings)
        yield from evaluations(run, place.out)


def _plan(trial: Trial, place: Place) -> Plan:
    """The plan in `plan.yaml`; made first, where there is none."""
    path = place.out / PLAN
    if path.exists():
        plan = Plan.read(path)
    else:
        facts = _facts(place.out, trial.tasks)
        given = trial.pretrain_steps and trial.finetune_steps and not trial.equal_time
        plan = _given_plan(trial, place, facts) if given else _measured_plan(trial, place, facts)
    for kind, run in plan.recipe.runs.items():
        write_run_deepspeed(_deepspeed_file(place, kind), run)
    return plan


def _given_plan(trial: Trial, place: Place, facts: CatalogFacts) -> Plan:
    """Of a trial whose steps are all named: nothing is measured."""
    machine = Machine(num_cores(), place.ranks, "fp32")
    chosen = _recipe(trial, place, facts, machine)
    lengths = given_lengths(trial, dict.fromkeys(map(str, chosen.runs), 0), None)
    plan = Plan(_said(trial, facts, machine, chosen, lengths), chosen, lengths)
    plan.write(place.out / PLAN, {"facts": asdict(facts), "machine": asdict(machine)})
    return plan


def _measured_plan(trial: Trial, place: Place, facts: CatalogFacts) -> Plan:
    out, cores, spent = place.out, num_cores(), place.runner.spent
    recipes: dict[Precision, Recipe] = {
        precision: _recipe(trial, place, facts, Machine(cores, place.ranks, precision)) for precision in precisions()
    }
    settings = {}
    for precision, chosen in recipes.items():
        for kind, run in chosen.runs.items():
            settings[f"{kind}_{precision}"] = out / f"settings/measure_{kind}_{precision}.json"
            write_run_deepspeed(settings[f"{kind}_{precision}"], run)
    commands = list(measuring(out, recipes, settings))
    remove_unfinished(commands, spent)
    place.runner.run(commands)
    precision, compared = quicker(out, recipes)
    machine = Machine(cores, place.ranks, precision)
    measured = speeds(out, recipes, machine, spent, min(SCORED, facts.test_rows["classification"]))
    wall, _ = spent.wall_and_cpu()
    before = wall * idle_share(out, recipes)
    left = left_for_training(60 * trial.minutes, before)
    lengths, seconds = lengths_within(trial, facts, recipes[precision], measured, left, place.runner.jobs)
    said = _said(trial, facts, machine, recipes[precision], lengths)
    said.append(_precision_said(precision, compared))
    said.append(f"about {seconds / 60:.0f} minutes more, on idle cores, of --minutes {trial.minutes:g}")
    if seconds > left:
        said.append("that is longer than asked for: even so few steps take it")
    elif before + seconds > 60 * trial.minutes:
        said.append(
            f"that is longer than asked for: {before / 60:.0f} minutes went into tables, floors and measurements, and "
            f"training has {LEAST_TRAINING:.0%} of --minutes all the same"
        )
    plan = Plan(said, recipes[precision], lengths)
    facts_of = {"facts": asdict(facts), "machine": asdict(machine), "speeds": asdict(measured), "compared": compared}
    plan.write(out / PLAN, {**facts_of, "seconds": seconds})
    return plan


def _recipe(trial: Trial, place: Place, facts: CatalogFacts, machine: Machine) -> Recipe:
    """The recipe, without stage 1 where nothing starts from it."""
    chosen = recipe(facts, machine, trial.minutes, trial.chains)
    kinds = {*trial.tasks, *(("stage1",) if "pretrained" in trial.starts else ())}
    chosen = Recipe({kind: run for kind, run in chosen.runs.items() if kind in kinds})
    if trial.text_model is not None:
        chosen = with_text_model(chosen, str(text_model_folder(trial.text_model, place.out)))
    return chosen


def _facts(out: Path, tasks: tuple[Kind, ...]) -> CatalogFacts:
    catalog = Catalog(out / "plain/catalog")
    tables = {task: Table(out / f"plain/{TASKS[task]}.parquet", catalog) for task in tasks}
    rows = {"stage1": len(catalog.indices("train"))}
    test_rows = {"stage1": len(catalog.indices("test"))}
    for kind, table in tables.items():
        rows[kind], test_rows[kind] = len(table.rows("train")), len(table.rows("test"))
    return CatalogFacts(len(catalog), tables["classification"].num_classes, rows, test_rows)


def _said(trial: Trial, facts: CatalogFacts, machine: Machine, chosen: Recipe, lengths: Lengths) -> list[str]:
    first = (
        f"{facts.items:,} items, {facts.categories} categories, {machine.cores} cores, {machine.precision}: "
        f"{chosen.size}"
    )
    lines = [first]
    for kind, run in chosen.runs.items():
        steps = lengths.steps[kind]
        epochs = steps * run.batch_size / facts.rows[kind]
        lines.append(f"{kind}: {steps:,} steps of {run.batch_size} = {epochs:.1f} epochs, rate {run.learning_rate:g}")
    if trial.equal_time:
        more = ", ".join(f"{number:,} ({kind})" for kind, number in lengths.instead.items())
        lines.append(f"from scratch, in the time of stage 1: {more} steps more")
    if len(trial.seeds) > 1:
        lines.append(f"each of it for {len(trial.seeds)} seeds")
    return lines


def _precision_said(precision: Precision, compared: dict[str, float]) -> str:
    if "bf16" not in compared:
        return "fp32: this CPU does not multiply bf16"
    return f"{precision}: a step takes {1000 * compared['fp32']:.0f} ms in fp32, {1000 * compared['bf16']:.0f} in bf16"


def _deepspeed_file(place: Place, kind: Kind) -> Path:
    return place.out / f"settings/{kind}.json"


def write_run_deepspeed(path: Path, run: RunRecipe) -> None:
    """DeepSpeed's JSON of a kind of run: that of ds_configs with the recipe's batch, rate, optimizer and ZeRO stage."""
    settings: dict[str, Any] = {f"optimizer.params.{name}": value for name, value in run.optimizer.items()}
    settings["zero_optimization.stage"] = run.zero_stage
    given = ROOT / f"ds_configs/{run.deepspeed}.json"
    write_deepspeed(path, given, run.batch_size, run.learning_rate, settings)
