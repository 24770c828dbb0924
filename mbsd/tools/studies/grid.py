"""`launchers/grid.py`: a grid search over batch size and learning rate of a fine-tuning, chosen by its validation."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, TypeVar

import typer
import yaml
from rich.table import Table

from mbsd.checkpoint.best import BestValidation, best_validation
from mbsd.cli.usage import run_app
from mbsd.config.parse import parse, to_yaml
from mbsd.config.run import FinetuneConfig
from mbsd.errors import UserError, exits_cleanly
from mbsd.tools.slurm.submit import expand
from mbsd.tools.studies.commands import Commands, LaunchConfig, as_typed, launch_command
from mbsd.tools.studies.pictures import draw_heat_map
from mbsd.tools.studies.settings import check_grid
from mbsd.tools.studies.steps import Step, run_step, run_steps
from mbsd.tools.studies.study import start_commands, tell, write_csv

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False)

K = TypeVar("K")
Point = tuple[int, float]  # batch size, learning rate


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Everything else is read as by launchers/finetune.py: --config, --deepspeed_config, --section.key VALUE. "
    "The grid lies in run.dir.",
)
def grid(
    context: typer.Context,
    learning_rates: Annotated[str | None, typer.Option(help="Such as 1e-5,2e-5; default: DeepSpeed's JSON's.")] = None,
    batch_sizes: Annotated[str | None, typer.Option(help="Such as 64,128; default: DeepSpeed's JSON's.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0-2: values are means over them.")] = None,
    launch: Annotated[str, typer.Option(help="What starts launchers/finetune.py.")] = LaunchConfig.command,
    cpu_ranks: Annotated[int | None, typer.Option(help="So many ranks on this machine's CPUs.")] = None,
) -> None:
    """Fine-tune once for each batch size and learning rate, and name the best by the validation's best.metric."""
    config, ds_config = parse(FinetuneConfig, context.args)
    started = LaunchConfig(launch, cpu_ranks)
    started.check()
    rates = _numbers("--learning-rates", learning_rates)
    sizes = tuple(map(int, _numbers("--batch-sizes", batch_sizes, whole=True) or ())) or None
    check_grid(sizes, rates)
    out, tree = Path(config.run.dir), yaml.safe_load(to_yaml(config))
    points: dict[str, tuple[Point, int]] = {}
    steps: list[Step] = []
    for size in sizes or (None,):
        for rate in rates or (None,):
            resolved = ds_config.changed(size, rate)
            point = resolved.batch_and_rate()
            for seed in expand(seeds) if seeds is not None else (config.run.seed,):
                name = f"batch-{point[0]}-lr-{point[1]:g}-seed-{seed}"
                of_seed = {**tree, "run": {**tree["run"], "seed": seed}}
                steps.append(run_step(name, "finetune", out / name, of_seed, resolved.tree))
                points[name] = point, seed
    commands = start_commands(out, started)
    run_steps(commands, out, steps, "run.dir")
    _report(commands, out, points, tree["data"])


def _report(commands: Commands, out: Path, points: dict[str, tuple[Point, int]], data: Any) -> None:
    """Tables and picture of the finished runs, and how to evaluate the best one."""
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
    tell(commands, out / "grid.md", "Grid", [(text, _table(values, best))])
    draw_heat_map(out / "grid.png", values, best, title, higher_is_better)
    evaluation = out / "evaluate.yaml"
    asked = {"model": str(model), "out": str(model / "test.json"), "data": data}
    evaluation.write_text(yaml.safe_dump(asked), encoding="utf-8")
    typed = as_typed(*launch_command(commands.launch, "evaluate", "--config", evaluation))
    commands.console.print(f"{out}/grid.png, grid.md, grid.csv", highlight=False)
    commands.console.print(f"the best run is {model}; its test rows: {typed}", markup=False, highlight=False)


def _numbers(option: str, text: str | None, *, whole: bool = False) -> tuple[float, ...] | None:
    """`1e-4,2e-4` or `[1e-4, 2e-4]`."""
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.strip("[] ").split(","))
    except ValueError as error:
        raise UserError(f"{option} {text}: expected numbers such as {'64,128' if whole else '1e-5,2e-5'}") from error
    if whole and not all(value.is_integer() for value in found):
        raise UserError(f"{option} {text}: expected whole numbers")
    return found


def _mean(values: list[float | None]) -> float | None:
    """None where one of them was no number."""
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


@exits_cleanly
def main() -> None:
    """Run the command line."""
    run_app(app, "python launchers/grid.py --help")
