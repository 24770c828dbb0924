"""The commands around a run: `mbsd export`, `plan`, `demo`, `report`, `neighbours`, `trial` and `floors`.

Modules are imported where they are used, so that `--help` and a misuse answer at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mbsd.cli.options import CatalogDir, Column, Out, columns_of
from mbsd.errors import UserError

tools_app = typer.Typer()


@tools_app.command("export")
def export(
    run: Annotated[Path, typer.Argument(help="A run folder (its newest checkpoint), or one of its checkpoints.")],
    out: Out,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx too, checked against torch.")] = False,
) -> None:
    """Write a transformers folder for inference: float32 weights, tokenizer, image processor."""
    from mbsd.tools.export.export import export as export_run

    done = export_run(run, out, onnx=onnx)
    print(f"{out}: {done.architecture} of {done.source}, {done.weights}")
    if done.differences:
        views = ", ".join(f"{view} {largest:.1e}" for view, largest in done.differences.items())
        print(f"{out}/model.onnx: largest difference from torch: {views}")


@tools_app.command("plan", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def plan(  # noqa: PLR0913 (options of a command line)
    context: typer.Context,
    config: Annotated[Path, typer.Option(help="YAML of a training run; --section.key VALUE overrides it.")],
    gpu: Annotated[str, typer.Option(help="v100-32g, a100-40g, a100-80g, h100-80g or h200-141g.")],
    gpus: Annotated[int, typer.Option(help="Of all nodes together.")] = 1,
    nodes: Annotated[int | None, typer.Option(help="Without: eight GPUs to a node.")] = None,
    deepspeed_config: Annotated[
        Path | None, typer.Option("--deepspeed_config", help="Without: the paper's batch, the largest micro-batch.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Of the training split; without: the catalogue's.")] = None,
    title_tokens: Annotated[int, typer.Option(help="Mean of a title.")] = 30,
    query_tokens: Annotated[int, typer.Option(help="Mean of a query.")] = 8,
    network_gbit: Annotated[float, typer.Option(help="Of a node, in one direction.")] = 100.0,
    measured: Annotated[
        Path | None, typer.Option(help="The gpu.json of `make gpu` on such a GPU; without: shares are assumed.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers there.")] = None,
) -> None:
    """Memory, FLOPs, step time, communication and days of a run on named GPUs, and which knob to turn."""
    from mbsd.tools.plan.command import PlanRequest, plan_run

    request = PlanRequest(
        config, deepspeed_config, tuple(context.args), gpu=gpu, gpus=gpus, nodes=nodes, samples=samples,
        title_tokens=title_tokens, query_tokens=query_tokens, network_gbit=network_gbit, measured=measured,
    )  # fmt: skip
    plan_run(request, json_file)


@tools_app.command("demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Another seed: another shop, another draw of everything.")] = 0,
    ranks: Annotated[int, typer.Option(help="Processes of stage 1; of the runs after it as many at once.")] = 2,
) -> None:
    """The whole story on a synthetic catalogue, on CPUs: synth, build, mine, two stages, fine-tune, evaluate."""
    from mbsd.tools.studies.demo import run_demo

    run_demo(out, seed=seed, ranks=ranks)


@tools_app.command("report")
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders, folders of runs, or JSON files of launchers/evaluate.py.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.md and a CSV a table.")],
    examples: Annotated[int, typer.Option(min=0, help="Right and wrong items that are shown of each run.")] = 6,
) -> None:
    """The paper's tables from evaluated runs, with curves and example items, in one page without a server."""
    from mbsd.tools.report.page import write_report

    for table in write_report(runs, out, examples):
        print(f"{table.title}\n\n{table.markdown()}")
    print(f"{out / 'report.html'}")


@tools_app.command("neighbours")
def neighbours(  # noqa: PLR0913 (options of a command line)
    vectors: Annotated[Path, typer.Argument(help="Folder written by launchers/embed.py.")],
    query: Annotated[list[str], typer.Option(help="A text; may be repeated.")] = [],  # noqa: B006
    item: Annotated[list[str], typer.Option(help="Id of an item, which needs no model; may be repeated.")] = [],  # noqa: B006
    picture: Annotated[list[Path], typer.Option(help="A picture file; may be repeated.")] = [],  # noqa: B006
    model: Annotated[
        Path | None, typer.Option(help="That encodes texts and pictures; without: the one that wrote the vectors.")
    ] = None,
    catalog: Annotated[Path | None, typer.Option(help="Without: the one that the vectors are of.")] = None,
    view: Annotated[
        str | None, typer.Option(help="text, image, mean or full: whose vectors are searched; without: mean.")
    ] = None,
    number: Annotated[int, typer.Option("-k", min=1, help="Items that are shown of each query.")] = 20,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("neighbours.html"),
) -> None:
    """The items nearest to texts, pictures and other items, on one page with pictures that needs no server."""
    from mbsd.io.console import quiet_libraries
    from mbsd.tools.neighbours.page import Asked, write_page

    quiet_libraries()
    asked = Asked(tuple(query), tuple(item), tuple(picture), view, number)
    for answer in write_page(vectors, asked, out, model=model, catalog_path=catalog):
        print(answer.text())
    print(out)


@tools_app.command("trial")
def trial(  # noqa: PLR0913 (options of a command line)
    source: Annotated[
        Path, typer.Argument(help="A shop's items, as of `mbsd catalog build`; with categories and attributes.")
    ],
    images: Annotated[str, typer.Option(help="What image paths are relative to, as of `mbsd catalog build`.")],
    out: Annotated[Path, typer.Option(help="Folder for everything; a trial that was interrupted goes on there.")],
    minutes: Annotated[
        float, typer.Option(help="Of the whole command, on idle cores: sizes, epochs and schedules follow from it.")
    ] = 60,
    column: Column = None,
    mask_attribute: Annotated[
        list[str], typer.Option(help="Its values are taken out of the masked titles too; may be repeated.")
    ] = [],  # noqa: B006
    min_items: Annotated[int, typer.Option(min=1, help="Categories with fewer items are left out.")] = 20,
    max_rejects: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the pictures that may be missing or damaged; 1: any number.")
    ] = 0.05,
    no_attributes: Annotated[
        bool, typer.Option("--no-attributes", help="Ask categories alone, of items without attributes too.")
    ] = False,
    seeds: Annotated[str, typer.Option(help="Of the runs, such as 0-2: mean and deviation are tabulated.")] = "0",
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Fine-tune without pre-training too, in as many steps.")
    ] = False,
    worth: Annotated[
        bool,
        typer.Option(
            "--worth", help="Is pre-training worth it: from scratch too, for as long in all, with fewer labels too."
        ),
    ] = False,
    label_share: Annotated[
        list[float],
        typer.Option(help="Of the training labels; may be repeated. Without: 1, with --worth 1 and 0.1."),
    ] = [],  # noqa: B006
    text_model: Annotated[
        str | None, typer.Option(help="A BERT's folder that the text side starts from; minilm: of the extra `minilm`.")
    ] = None,
    pretrain_steps: Annotated[int | None, typer.Option(min=1, help="Of stage 1, in place of the budget's.")] = None,
    finetune_steps: Annotated[
        int | None, typer.Option(min=1, help="Of each fine-tuning, in place of the budget's.")
    ] = None,
    ranks: Annotated[
        int, typer.Option(min=1, help="Processes of a training run; those that need not wait share the cores.")
    ] = 1,
    launch: Annotated[
        str | None,
        typer.Option(
            help="What starts the launchers, such as torchrun …. Without: python for one rank, else deepspeed."
        ),
    ] = None,
) -> None:
    """A small model on a shop's own items, on CPUs: pre-train, fine-tune, score with titles masked, beside floors.

    The first steps are measured; what is going to be trained, and for how long, is printed before anything is.
    """
    from mbsd.config.parse import expand
    from mbsd.tools.studies.commands import LaunchConfig
    from mbsd.tools.studies.trial.run import run_trial
    from mbsd.tools.studies.trial.settings import Trial, starts

    settings = Trial(
        str(source.resolve()), images, columns_of(column), tuple(mask_attribute), min_items, max_rejects,
        not no_attributes, minutes=minutes,
        seeds=expand(seeds, "--seeds"), starts=starts(scratch or worth), equal_time=worth,
        label_shares=tuple(label_share) or ((1.0, 0.1) if worth else (1.0,)), text_model=text_model,
        pretrain_steps=pretrain_steps, finetune_steps=finetune_steps,
    )  # fmt: skip
    run_trial(settings, out, LaunchConfig(launch or ("python" if ranks == 1 else "deepspeed"), cpu_ranks=ranks))


@tools_app.command("floors")
def floors(
    catalog: CatalogDir,
    table: Annotated[Path, typer.Option(help="Of attributes or categories.")],
    out: Annotated[Path, typer.Option(help="JSON file for the metrics.")],
    answers: Annotated[
        Path | None, typer.Option(help="Parquet file for each floor's answer and probabilities of every test row.")
    ] = None,
    also: Annotated[
        Path | None,
        typer.Option(
            help="What a model has seen before: floors learn from this table's training rows too. Of the same kind, or "
            "of categories under attributes."
        ),
    ] = None,
    also_catalog: Annotated[Path | None, typer.Option(help="That table's catalogue; without: the same.")] = None,
) -> None:
    """What logistic regressions on TF-IDF, colours and edges reach on a task table's test split."""
    from mbsd.catalog.reader import Catalog
    from mbsd.scoring.floors import write_floors

    if also_catalog is not None and also is None:
        raise UserError(f"--also-catalog {also_catalog}: is the catalogue of --also, which is not given; give it")
    more = None if also is None else (also, Catalog(also_catalog or catalog))
    write_floors(Catalog(catalog), table, out, answers, more)


@tools_app.command("vector-floors")
def vector_floors(
    catalog: CatalogDir,
    out: Annotated[Path, typer.Option(help="Folder for FLOOR/TASK.json, as launchers/evaluate.py writes them.")],
    table: Annotated[list[Path], typer.Option(help="Of categories, attributes or alignment; may be repeated.")] = [],  # noqa: B006
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples behind each 95 % interval; 0: none.")] = 1000,
) -> None:
    """What TF-IDF, colours and edges reach as vectors, and by canonical correlation: retrieval, zero-shot, probe …."""
    from mbsd.catalog.reader import Catalog
    from mbsd.scoring.vector_floors import write_vector_floors

    write_vector_floors(Catalog(catalog), table, out, bootstrap)
