"""`launchers/submit.py`: the command line of a submission to Slurm."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from mbsd.cli.usage import run_app
from mbsd.config.parse import parse
from mbsd.errors import exits_cleanly
from mbsd.tools.slurm.job import LAUNCHERS
from mbsd.tools.slurm.submit import Submission, submit

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Everything else is read as by launchers/pretrain.py and finetune.py: --config, --deepspeed_config, "
    "--section.key VALUE.",
)
def submit_command(  # noqa: PLR0913 (options of a command line)
    context: typer.Context,
    launcher: Annotated[Literal["pretrain", "finetune"], typer.Argument(help="Which launcher.")],
    nodes: Annotated[int | None, typer.Option(help="Nodes.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of each node, a rank for each. 0: see --ranks.")] = None,
    ranks: Annotated[int | None, typer.Option(help="Ranks of each node, where they have no GPUs.")] = None,
    cpus: Annotated[int | None, typer.Option(help="Cores of each rank.")] = None,
    time_limit: Annotated[
        str | None, typer.Option("--time", help="Such as 24:00:00; the job's next start resumes the run.")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm's.")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm's.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0-3,7: an array, a run in RUN/seed-N for each.")] = None,
    depends_on: Annotated[
        list[str] | None, typer.Option(help="Run folder or job number that has to finish first; may be repeated.")
    ] = None,
    sbatch: Annotated[list[str] | None, typer.Option(help="An option of sbatch, such as --sbatch=--qos=high.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be submitted; write nothing.")] = False,
) -> None:
    """Submit a training run to Slurm. Without an option, what launchers/slurm/LAUNCHER.sbatch says."""
    config, ds_config = parse(LAUNCHERS[launcher], context.args)
    submit(
        Submission(
            launcher, config, ds_config, nodes=nodes, gpus=gpus, ranks=ranks, cpus=cpus, time_limit=time_limit,
            partition=partition, account=account, seeds=seeds, depends_on=tuple(depends_on or ()),
            sbatch=tuple(sbatch or ()), dry_run=dry_run,
        )
    )  # fmt: skip


@exits_cleanly
def main() -> None:
    """Run the command line."""
    run_app(app, "launchers/submit.py --help")
