"""`launchers/grid.py`: a grid search over batch size and learning rate of a fine-tuning, chosen by its validation."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

import yaml
from rich.table import Table

from mbsd.checkpoint.best import BestValidation, best_validation
from mbsd.config.deepspeed import DeepSpeedConfig
from mbsd.config.parse import to_yaml
from mbsd.config.run import FinetuneConfig
from mbsd.errors import UserError
from mbsd.io.files import replace_text
from mbsd.tools.studies.commands import LaunchConfig, as_typed, launch_command
from mbsd.tools.studies.launches import Launch, run_launches, training
from mbsd.tools.studies.pictures import draw_heat_map
from mbsd.tools.studies.runner import Runner, start_runner
from mbsd.tools.studies.settings import check_grid
from mbsd.tools.studies.study import report, write_csv

K = TypeVar("K")
Point = tuple[int, float]  # batch size, learning rate


@dataclass(frozen=True)
class GridConfig:
    """A fine-tuning and the grid that is searched; everything lies in the fine-tuning's `run.dir`."""

    finetune: FinetuneConfig
    deepspeed: DeepSpeedConfig
    batch_sizes: tuple[int, ...] | None = None
    """None: DeepSpeed's JSON's."""
    learning_rates: tuple[float, ...] | None = None
    """None: DeepSpeed's JSON's."""
    seeds: tuple[int, ...] | None = None
    """A point's value is the mean over them; None: the fine-tuning's own."""
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    def check(self) -> None:
        """Raise UserError for a grid or a launch that makes no sense."""
        self.launch.check()
        check_grid(self.batch_sizes, self.learning_rates)


def run_grid(config: GridConfig) -> None:
    """Fine-tune once for each point and seed; `grid.md`, `grid.csv`, `grid.png` and the best's `evaluate.yaml` follow.

    Raises:
        UserError: the grid makes no sense, or `run.dir` holds one that was begun with other settings.
    """
    config.check()
    out, tree = Path(config.finetune.run.dir), yaml.safe_load(to_yaml(config.finetune))
    points: dict[str, tuple[Point, int]] = {}
    launches: list[Launch] = []
    for size in config.batch_sizes or (None,):
        for rate in config.learning_rates or (None,):
            resolved = config.deepspeed.changed(size, rate)
            point = resolved.batch_and_rate()
            for seed in config.seeds if config.seeds is not None else (config.finetune.run.seed,):
                name = f"batch-{point[0]}-lr-{point[1]:g}-seed-{seed}"
                of_seed = {**tree, "run": {**tree["run"], "seed": seed}}
                launches.append(training(name, "finetune", out / name, of_seed, resolved.tree))
                points[name] = point, seed
    runner = start_runner(out, config.launch)
    run_launches(runner, out, launches, "run.dir")
    _report(runner, out, points, tree["data"])


def _report(runner: Runner, out: Path, points: dict[str, tuple[Point, int]], data: Any) -> None:
    """Write the tables and the picture of the finished runs, and print how to evaluate the best one."""
    found = {name: best_validation(out / name) for name in points}
    metric, higher_is_better = next((best.metric, best.higher_is_better) for best in found.values())
    of_point: dict[Point, list[float | None]] = {}
    for name, (point, _) in points.items():
        of_point.setdefault(point, []).append(found[name].value)
    values = {point: _mean(of_seeds) for point, of_seeds in of_point.items()}
    best = _best(values, higher_is_better, metric)
    model = out / _best(
        {name: found[name].value for name in points if points[name][0] == best}, higher_is_better, metric
    )

    num_seeds = len(of_point[best])
    title = f"validation {metric}" + (f", mean of {num_seeds} seeds" if num_seeds > 1 else "")
    write_csv(out / "grid.csv", [_line(name, *points[name], found[name]) for name in points])
    text = f"{title}; best: batch size {best[0]}, learning rate {best[1]:g}."
    report(runner.console, out / "grid.md", "Grid", [(text, _table(values, best))])
    draw_heat_map(out / "grid.png", values, best, title, higher_is_better)
    evaluation = out / "evaluate.yaml"
    asked = {"model": str(model), "out": str(model / "test.json"), "data": data}
    replace_text(evaluation, yaml.safe_dump(asked))
    typed = as_typed(*launch_command(runner.launch, "evaluate", "--config", evaluation))
    runner.console.print(f"{out}/grid.png, grid.md, grid.csv", highlight=False)
    runner.console.print(f"the best run is {model}; its test rows: {typed}", markup=False, highlight=False)


def _mean(values: list[float | None]) -> float | None:
    """None where one of them is None: that run never had a number."""
    numbers = [value for value in values if value is not None]
    return mean(numbers) if len(numbers) == len(values) else None


def _best(values: dict[K, float | None], higher_is_better: bool, metric: str) -> K:
    """The key of the best value; the first of equals."""
    numbers = {key: value for key, value in values.items() if value is not None}
    if not numbers:
        raise UserError(f"no run of the grid has ever had a number for {metric}; choose smaller learning rates")
    return (max if higher_is_better else min)(numbers, key=numbers.__getitem__)


def _line(name: str, point: Point, seed: int, best: BestValidation) -> dict[str, Any]:
    return {"run": name, "batch_size": point[0], "learning_rate": point[1], "seed": seed, "metric": best.metric,
            "value": json.dumps(best.value), "step": best.step}  # fmt: skip


def _table(values: dict[Point, float | None], best: Point) -> Table:
    sizes, rates = (list(dict.fromkeys(point[k] for point in values)) for k in (0, 1))
    table = Table("batch size", *(f"lr {rate:g}" for rate in rates))
    for size in sizes:
        shown = []
        for rate in rates:
            value = values[int(size), rate]
            shown.append("no number" if value is None else f"{value:.4f}" + (" (best)" if (size, rate) == best else ""))
        table.add_row(f"{size:g}", *shown)
    return table
