"""`launchers/grid.py`: the command line of a grid search."""

from __future__ import annotations

from typing import Annotated

import typer

from mbsd.cli.usage import run_app
from mbsd.config.parse import expand, parse
from mbsd.config.run import FinetuneConfig
from mbsd.errors import UserError, exits_cleanly
from mbsd.tools.studies.commands import LaunchConfig
from mbsd.tools.studies.grid import GridConfig, run_grid

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False)


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
    sizes = _numbers("--batch-sizes", batch_sizes, whole=True)
    run_grid(
        GridConfig(
            config, ds_config,
            batch_sizes=None if sizes is None else tuple(map(int, sizes)),
            learning_rates=_numbers("--learning-rates", learning_rates),
            seeds=None if seeds is None else expand(seeds, "--seeds"),
            launch=LaunchConfig(launch, cpu_ranks),
        )
    )  # fmt: skip


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


@exits_cleanly
def main() -> None:
    """Run the command line."""
    run_app(app, "python launchers/grid.py --help")
