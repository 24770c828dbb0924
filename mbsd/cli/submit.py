"""`launchers/submit.py`: the command line of a submission to Slurm."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from mbsd.cli.catalog import catalog_app
from mbsd.cli.usage import run_app
from mbsd.config.parse import parse
from mbsd.errors import UserError, exits_cleanly
from mbsd.tools.slurm.catalog import CatalogSubmission, submit_catalog
from mbsd.tools.slurm.job import LAUNCHERS
from mbsd.tools.slurm.submit import Submission, submit

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Everything else is read as by launchers/pretrain.py and finetune.py: --config, --deepspeed_config, "
    "--section.key VALUE; for a catalogue as by `mbsd catalog build`.",
)
def submit_command(  # noqa: PLR0913 (options of a command line)
    context: typer.Context,
    launcher: Annotated[
        Literal["pretrain", "finetune", "catalog"], typer.Argument(help="Which launcher, or `mbsd catalog build`.")
    ],
    nodes: Annotated[int | None, typer.Option(help="Nodes.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of each node, a rank for each. 0: see --ranks.")] = None,
    ranks: Annotated[int | None, typer.Option(help="Ranks of each node, where they have no GPUs.")] = None,
    cpus: Annotated[int | None, typer.Option(help="Cores of each rank, or of each part of a catalogue.")] = None,
    time_limit: Annotated[
        str | None, typer.Option("--time", help="Such as 24:00:00; the job's next start resumes the run.")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm's.")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm's.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0-3,7: an array, a run in RUN/seed-N for each.")] = None,
    parts: Annotated[
        int | None, typer.Option(help="Of a catalogue: an array, a part in OUT.parts for each, and then their merge.")
    ] = None,
    depends_on: Annotated[
        list[str] | None, typer.Option(help="Run folder or job number that has to finish first; may be repeated.")
    ] = None,
    sbatch: Annotated[list[str] | None, typer.Option(help="An option of sbatch, such as --sbatch=--qos=high.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be submitted; write nothing.")] = False,
) -> None:
    """Submit a training run, or a catalogue built in parts, to Slurm.

    Without an option, what launchers/slurm/LAUNCHER.sbatch says. Of a catalogue, the same command again submits the
    parts that are not finished.
    """
    after, more = tuple(depends_on or ()), tuple(sbatch or ())
    if launcher == "catalog":
        training = {"--nodes": nodes, "--gpus": gpus, "--ranks": ranks, "--seeds": seeds}
        given = next((name for name, value in training.items() if value is not None), None)
        if given is not None:
            raise UserError(f"{given} {training[given]}: of a training run; a catalogue has --parts and --cpus")
        if parts is None:
            raise UserError("--parts is missing: in how many parts the catalogue is built, such as --parts 8")
        build = _catalog_build(context.args)
        submit_catalog(
            CatalogSubmission(
                tuple(context.args), build["out"], build["max_rejects"], parts, cpus=cpus, time_limit=time_limit,
                partition=partition, account=account, depends_on=after, sbatch=more, dry_run=dry_run,
            )
        )  # fmt: skip
        return
    if parts is not None:
        raise UserError(f"--parts {parts}: of a catalogue; a training run has --nodes, --gpus and --seeds")
    config, ds_config = parse(LAUNCHERS[launcher], context.args)
    submit(
        Submission(
            launcher, config, ds_config, nodes=nodes, gpus=gpus, ranks=ranks, cpus=cpus, time_limit=time_limit,
            partition=partition, account=account, seeds=seeds, depends_on=after, sbatch=more, dry_run=dry_run,
        )
    )  # fmt: skip


def _catalog_build(words: list[str]) -> dict[str, Any]:
    """Read the command line of `mbsd catalog build`; return its options by name."""
    command: Any = typer.main.get_command(catalog_app)
    with command.commands["build"].make_context("catalog build", list(words)) as context:
        options: dict[str, Any] = context.params
    for name, why in (("part", "each job has its own"), ("restart", "a job that is queued again would begin anew")):
        if options[name]:
            raise UserError(f"--{name}: not for a catalogue that is submitted, {why}; leave it out")
    return options


@exits_cleanly
def main() -> None:
    """Run the command line."""
    run_app(app, "launchers/submit.py --help")
