"""`mbsd …`: everything that is not a training run (those are `launchers/`)."""

from __future__ import annotations

import typer

from mbsd.cli.bench import bench_app
from mbsd.cli.catalog import catalog_app
from mbsd.cli.options import RunOrMirror
from mbsd.cli.tables import pairs_app, tables_app
from mbsd.cli.tools import tools_app
from mbsd.cli.usage import run_app
from mbsd.errors import exits_cleanly

app = typer.Typer(
    name="mbsd", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False,
    help="From a shop's product catalogue and search log to a pre-trained vision-and-language product model.",
)  # fmt: skip
checkpoint_app = typer.Typer(no_args_is_help=True, help="Checkpoints of a run.")
app.add_typer(tools_app)
app.add_typer(catalog_app, name="catalog")
app.add_typer(tables_app, name="tables")
app.add_typer(pairs_app, name="pairs")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(bench_app, name="bench")


@checkpoint_app.command("list")
def checkpoint_list(run: RunOrMirror) -> None:
    """Print a run's checkpoints: step, age, size, ranks, validation (the best is marked), complete or not."""
    from mbsd.checkpoint.listing import list_checkpoints

    list_checkpoints(run)


@checkpoint_app.command("verify")
def checkpoint_verify(run: RunOrMirror) -> None:
    """Read every file of every checkpoint and compare its checksum; exit code 2 names what is wrong."""
    from mbsd.checkpoint.listing import verify_checkpoints

    verify_checkpoints(run)


@exits_cleanly
def main() -> None:
    """Run the command line; a usage mistake is one line and exit code 2, like every other mistake of the user's."""
    run_app(app, "mbsd --help")


if __name__ == "__main__":
    main()
