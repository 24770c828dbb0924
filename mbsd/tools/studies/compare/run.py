"""`launchers/compare.py`: all models x pre-training x tasks x seeds as one study that can be resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from mbsd.errors import UserError
from mbsd.io.files import replace_text
from mbsd.tools.studies.compare.costs import Costs, as_json, first_of_each, measure_costs, read_costs
from mbsd.tools.studies.compare.equal_time import equal_steps
from mbsd.tools.studies.compare.plan import Trained, plan
from mbsd.tools.studies.compare.scores import DECIDES, compare_pairs, read_metrics
from mbsd.tools.studies.compare.settings import TABLE_OF, CompareConfig, ComparedTables
from mbsd.tools.studies.compare.tables import TITLES, Found, Pretraining, sections, write_tables
from mbsd.tools.studies.launches import check_launches, run_launches
from mbsd.tools.studies.runner import Runner, start_runner
from mbsd.tools.studies.settings_files import same_settings
from mbsd.tools.studies.shop import shop_below, shop_commands
from mbsd.tools.studies.study import report
from mbsd.tools.studies.study_page.page import Section, write_study_page
from mbsd.tools.studies.trial_report.curves import read_run


def run_compare(config: CompareConfig) -> list[Section]:
    """Run the study and write `compare.md`, `compare.html`, `scores.csv`, `pairs.csv` and `models.csv` to `config.out`.

    Returns:
        What the page shows.
    """
    out = Path(config.out)
    runner = start_runner(out, config.launch, jobs=config.jobs)
    tables = _tables(config, runner)
    if not any(getattr(config.tasks, task) for task, _ in tables.of_tasks()):
        raise UserError("tasks: the shop has tables of attributes alone; name tasks.attributes")
    check_launches(plan(config, tables, {})[0])
    steps = equal_steps(config, tables, runner)
    launches, cells = plan(config, tables, steps)
    run_launches(runner, out, launches, "out")
    scores = read_metrics(cells)
    pairs = [
        pair
        for task in DECIDES
        if config.bootstrap and any(cell.task == task for cell in cells)
        for pair in compare_pairs(scores, task, config.bootstrap)
    ]
    costs = _costs(config, cells)
    found = Found(cells, scores, pairs, costs, list(_pretraining(config, runner, cells)))
    shown = list(sections(found, config.bootstrap))
    write_tables(found, out)
    told = "; ".join(_told(config, tables))
    report(runner.console, out / "compare.md", "Models compared", [table for part in shown for table in _headed(part)])
    runner.console.print(told, highlight=False, markup=False)
    write_study_page(out / "compare.html", "Models compared", f"{told}.", shown)
    runner.console.print(f"{out}/compare.html, compare.md, scores.csv, pairs.csv, models.csv", highlight=False)
    return shown


def _tables(config: CompareConfig, runner: Runner) -> ComparedTables:
    """Those that the settings name, or of a shop that is drawn."""
    if config.tables is not None:
        return config.tables
    assert config.shop is not None, "CompareConfig.check"
    out = Path(config.out)
    same_settings(out, "shop", asdict(config.shop), "out")
    runner.run(shop_commands(out, config.shop))
    shop = shop_below(out)
    return ComparedTables(str(shop.catalog), str(shop.attributes), pairs=str(shop.pairs))


def _headed(part: Section) -> Iterator[tuple[str, Table]]:
    for text, table in part.tables:
        yield f"{part.title}. {text}", table


def _told(config: CompareConfig, tables: ComparedTables) -> Iterator[str]:
    """What a reader has to know of all tables."""
    yield f"{tables.catalog}, seeds {config.seeds}"
    if config.minutes is not None:
        yield f"{config.minutes:g} minutes of pre-training each"
    there = {task for task, _ in tables.of_tasks() if getattr(config.tasks, task) is not None}
    for task, name in TABLE_OF.items():
        if task not in there:
            why = f"tables.{name}" if getattr(config.tasks, task) is not None else f"tasks.{task}"
            yield f"no {TITLES[task].partition(':')[0]}, for {why} is not set"


def _costs(config: CompareConfig, cells: Sequence[Trained]) -> dict[str, Costs]:
    """Measured once: the same study gives the same page."""
    file, measured = Path(config.out) / "settings/costs.json", dict(first_of_each(cells))
    costs = read_costs(file, list(measured))
    if costs is None:
        on_cpu = config.launch.cpu_ranks is not None
        costs = measure_costs(measured, Path(config.out) / "settings", on_cpu, config.latency_steps)
        replace_text(file, json.dumps(as_json(costs), indent=1) + "\n")
    return costs


def _pretraining(config: CompareConfig, runner: Runner, cells: Sequence[Trained]) -> Iterator[Pretraining]:
    spent = runner.spent.commands()
    for (model, seed), runs in {(cell.model.name, cell.seed): cell.pretrained for cell in cells}.items():
        names = [str(run.relative_to(config.out)) for run in runs]
        # Of a start that was killed together with the study nothing was counted.
        counted = config.launch.cpu_ranks is not None and all(name in spent for name in names)
        cores = sum(spent[name][1] for name in names) / 60 if counted else None
        logged = [read_run(run) for run in runs]
        steps = tuple(one.samples // one.batch for one in logged)
        yield Pretraining(model, seed, steps, sum(one.minutes or 0.0 for one in logged), cores)
