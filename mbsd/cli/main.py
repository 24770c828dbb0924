"""`mbsd …`: everything that is not a training run (those are `launchers/`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from mbsd.cli.bench import bench_app
from mbsd.cli.usage import run_app
from mbsd.errors import UserError, exits_cleanly

app = typer.Typer(
    name="mbsd", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False,
    help="From a shop's product catalogue and search log to a pre-trained vision-and-language product model.",
)  # fmt: skip
catalog_app = typer.Typer(no_args_is_help=True, help="Validated catalogues: items and pictures in shards.")
tables_app = typer.Typer(no_args_is_help=True, help="Task tables over a catalogue.")
pairs_app = typer.Typer(no_args_is_help=True, help="Query-item pairs from behaviour logs.")
checkpoint_app = typer.Typer(no_args_is_help=True, help="Checkpoints of a run.")
app.add_typer(catalog_app, name="catalog")
app.add_typer(tables_app, name="tables")
app.add_typer(pairs_app, name="pairs")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(bench_app, name="bench")

Out = Annotated[Path, typer.Option(help="Where the result goes.")]
CatalogDir = Annotated[Path, typer.Option("--catalog", help="Folder written by `mbsd catalog build`.")]
RunDir = Annotated[Path, typer.Argument(help="A run folder, or one that holds step-… folders.")]
Workers = Annotated[int, typer.Option(help="Processes; 0 = one per core.")]


@catalog_app.command("synth")
def catalog_synth(
    out: Annotated[Path, typer.Argument(help="A new folder for items, pictures and log.")],
    items: Annotated[int, typer.Option(help="Number of products.")] = 2000,
    seed: Annotated[int, typer.Option(help="Another seed draws another shop.")] = 0,
    language: Annotated[Literal["zh", "en"], typer.Option(help="Of titles, queries and attributes.")] = "zh",
    image_side: Annotated[int, typer.Option(help="Pixels of a picture's side.")] = 224,
    workers: Workers = 0,
) -> None:
    """Draw a fashion catalogue with a behaviour log: items.jsonl, images/, log.parquet, attribute_where.json."""
    from mbsd.catalog.synthetic.shop import synthesise

    summary = synthesise(out, num_items=items, seed=seed, language=language, image_side=image_side, workers=workers)
    print(f"{out}: {summary.items} items, {summary.log_rows} rows of behaviour")


@catalog_app.command("build")
def catalog_build(
    source: Annotated[Path, typer.Argument(help="Items: TSV (2 to 5 columns, no header), JSONL or Parquet.")],
    out: Out,
    images: Annotated[
        str | None, typer.Option(help="What image paths are relative to: folder, .tar, folder or glob of tars, or URL.")
    ] = None,
    attribute_where: Annotated[
        Path | None, typer.Option(help="JSON: attribute name -> image | title | both, where its value can be seen.")
    ] = None,
    max_side: Annotated[int, typer.Option(help="Pixels of a stored picture's long side.")] = 320,
    max_rejects: Annotated[
        float, typer.Option(help="Share of the rows naming a picture whose pictures may be rejected; 1 = any number.")
    ] = 0.05,
    image_seconds: Annotated[float, typer.Option(help="Longest time to read and decode a picture.")] = 10.0,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, where an unfinished build lies.")] = False,
    workers: Workers = 0,
) -> None:
    """Check and normalise every picture and write the catalogue; what is wrong goes to OUT/quarantine.jsonl.

    The same command again goes on where an interrupted one stopped.
    """
    from mbsd.catalog.build.build import BuildOptions, ImageLimits, build_catalog
    from mbsd.catalog.sources import read_items

    options = BuildOptions(
        workers=workers, max_side=max_side, max_rejects=max_rejects, limits=ImageLimits(seconds=image_seconds),
        attribute_where=_read_json(attribute_where) if attribute_where is not None else {},
        restart=restart, progress=sys.stderr.isatty(),
    )  # fmt: skip
    summary = build_catalog(read_items(source), images, out, options)
    print(
        f"{out}: {summary.items} items, {summary.with_image} with an image, {summary.quarantined} quarantined, "
        f"{summary.repeated} rows with an item id of before, {summary.same_picture} items with a picture of before, "
        f"{summary.seconds:.1f} s, {summary.images_per_s:.0f} images/s"
    )
    if summary.resumed_from:
        print(f"  continued behind row {summary.resumed_from}")
    if not summary.has_image_root:
        print("  no picture was looked up: no --images was given")
    for reason, count in summary.reasons.most_common(10):
        print(f"  {count} x {reason}")


@catalog_app.command("mask")
def catalog_mask(
    source: Annotated[Path, typer.Argument(help="Items, as of `mbsd catalog build`.")],
    out: Out,
    attributes: Annotated[list[str], typer.Option("--attribute", help="Its values' words too; may be repeated.")] = [],  # noqa: B006
) -> None:
    """Write the items (JSONL) with titles that no longer name any category, or any value of the attributes."""
    from mbsd.catalog.masked_titles import mask_titles

    items, changed = mask_titles(source, out, attributes)
    print(f"{out}: {items} items, {changed} titles masked")


@catalog_app.command("inspect")
def catalog_inspect(catalog: Annotated[Path, typer.Argument(help="Folder written by `mbsd catalog build`.")]) -> None:
    """Print what is in a catalogue, as JSON."""
    from mbsd.catalog.inspection import inspect_catalog

    print(json.dumps(inspect_catalog(catalog), ensure_ascii=False, indent=1))


@tables_app.command("build")
def tables_build(
    kind: Annotated[Literal["pairs", "attributes", "alignment", "categories"], typer.Argument()],
    source: Annotated[Path, typer.Argument(help="TSV, JSONL or Parquet with the labels.")],
    catalog: CatalogDir,
    out: Out,
) -> None:
    """Write a task table from labels; items are found by id, or by title and image."""
    from mbsd.catalog.reader import Catalog
    from mbsd.catalog.tables import build_table

    print(f"{out}: {build_table(kind, source, Catalog(catalog), out).describe()}")


@tables_app.command("derive")
def tables_derive(
    kind: Annotated[Literal["attributes", "categories"], typer.Argument()],
    catalog: CatalogDir,
    out: Out,
    seed: Annotated[int, typer.Option(help="Of the negatives' draw.")] = 0,
    negatives_per_positive: Annotated[int, typer.Option(help="Wrong tags for each right one.")] = 1,
    min_items: Annotated[int, typer.Option(help="Categories with fewer items are left out.")] = 1,
) -> None:
    """Write a task table from the items' own metadata."""
    from mbsd.catalog.reader import Catalog
    from mbsd.catalog.tables import derive_table

    summary = derive_table(
        kind, Catalog(catalog), out, seed=seed, negatives_per_positive=negatives_per_positive, min_items=min_items
    )
    print(f"{out}: {summary.describe()}")


@pairs_app.command("mine")
def pairs_mine(
    log: Annotated[str, typer.Option(help="Parquet, CSV or JSONL: a file, folder, glob, or URL of Parquet.")],
    catalog: CatalogDir,
    out: Out,
    min_buyers: Annotated[int, typer.Option(help="Distinct buyers that make a pair a positive.")] = 2,
    negatives_per_positive: Annotated[int, typer.Option(help="Queries of the same category.")] = 1,
    rewrites_per_positive: Annotated[int, typer.Option(help="Queries with one term replaced.")] = 1,
    max_pairs_per_item: Annotated[int, typer.Option(help="Most rows of an item; 0 = no limit.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the negatives' draw.")] = 0,
    column: Annotated[
        list[str] | None, typer.Option(help="OURS=NAME for user, query, item, kind or time; may be repeated.")
    ] = None,
    split: Annotated[
        Literal["item", "time"], typer.Option(help="What train, validation and test are cut by.")
    ] = "item",
    validation_from: Annotated[str, typer.Option(help="Of --split time: a date, or a share such as 0.8.")] = "",
    test_from: Annotated[str, typer.Option(help="Of --split time: a date, or a share such as 0.9.")] = "",
    tagger: Annotated[str, typer.Option(help="What finds terms: gazetteer, or transformers:PATH.")] = "gazetteer",
    lexicon: Annotated[Path | None, typer.Option(help="Terms of your own for the tagger.")] = None,
    engine: Annotated[Literal["duckdb", "spark"], typer.Option(help="Both give the same table.")] = "duckdb",
    master: Annotated[str, typer.Option(help="Of Spark, such as spark://host:7077; without: this machine.")] = "",
    memory_limit: Annotated[str, typer.Option(help="Of the engine, such as 4GB.")] = "",
    spill: Annotated[str, typer.Option(help="Folder for what does not fit into memory.")] = "",
    threads: Annotated[int, typer.Option(help="0 = one per core.")] = 0,
    report: Annotated[Path | None, typer.Option(help="Folder of report.json; without: OUT's name + .report.")] = None,
) -> None:
    """Write the pair table of stage 2: purchases, and hard negatives without any behaviour."""
    from mbsd.catalog.mining.mine import MiningSettings, mine_pairs
    from mbsd.catalog.mining.model_tagger import make_tagger
    from mbsd.catalog.mining.report import write_report
    from mbsd.catalog.reader import Catalog

    columns = dict(_name_and_value(text) for text in column or [])
    settings = MiningSettings(
        min_buyers=min_buyers, negatives_per_positive=negatives_per_positive, seed=seed, columns=columns, split=split,
        rewrites_per_positive=rewrites_per_positive, max_pairs_per_item=max_pairs_per_item, master=master,
        validation_from=validation_from, test_from=test_from, engine=engine, memory_limit=memory_limit, spill=spill,
        threads=threads,
    )  # fmt: skip
    shop = Catalog(catalog)
    found = mine_pairs(log, shop, out, settings, make_tagger(tagger, shop, lexicon))
    page = write_report(found, out, report or out.with_name(out.stem + ".report"), shop)
    print(f"{out}: {found.describe()}; report: {page}")


@checkpoint_app.command("list")
def checkpoint_list(run: RunDir) -> None:
    """Print a run's checkpoints: step, age, size, ranks, validation (the best is marked), complete or not."""
    from mbsd.checkpoint.listing import list_checkpoints

    list_checkpoints(run)


@checkpoint_app.command("verify")
def checkpoint_verify(run: RunDir) -> None:
    """Read every file of every checkpoint and compare its checksum; exit code 2 names what is wrong."""
    from mbsd.checkpoint.listing import verify_checkpoints

    verify_checkpoints(run)


@app.command("export")
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


@app.command("plan", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def plan(
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
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers there.")] = None,
) -> None:
    """Memory, FLOPs, step time, communication and days of a run on named GPUs, and which knob to turn."""
    from mbsd.tools.plan.command import plan_run

    plan_run(
        config, deepspeed_config, context.args, gpu=gpu, gpus=gpus, nodes=nodes, samples=samples,
        title_tokens=title_tokens, query_tokens=query_tokens, network_gbit=network_gbit, json_file=json_file,
    )  # fmt: skip


@app.command("demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Another seed: another shop, another draw of everything.")] = 0,
    ranks: Annotated[int, typer.Option(help="Processes of each training run.")] = 2,
) -> None:
    """The whole story on a synthetic catalogue, on CPUs: synth, build, mine, two stages, fine-tune, evaluate."""
    from mbsd.tools.studies.demo import run_demo

    run_demo(out, seed=seed, ranks=ranks)


@app.command("report")
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


@app.command("trial")
def trial(
    source: Annotated[
        Path, typer.Argument(help="A shop's items, as of `mbsd catalog build`; with categories and attributes.")
    ],
    images: Annotated[str, typer.Option(help="What image paths are relative to, as of `mbsd catalog build`.")],
    out: Annotated[Path, typer.Option(help="Folder for everything; a trial that was interrupted goes on there.")],
    mask_attribute: Annotated[
        list[str], typer.Option(help="Its values are taken out of the masked titles too; may be repeated.")
    ] = [],  # noqa: B006
    min_items: Annotated[int, typer.Option(min=1, help="Categories with fewer items are left out.")] = 20,
    pretrain_steps: Annotated[int, typer.Option(min=1, help="Of stage 1; 64 items each.")] = 2000,
    finetune_steps: Annotated[int, typer.Option(min=1, help="Of each fine-tuning; 128 rows each.")] = 1000,
    scratch: Annotated[bool, typer.Option(help="Fine-tune without pre-training too.")] = True,
    seed: Annotated[int, typer.Option(help="Of all runs.")] = 0,
    ranks: Annotated[int, typer.Option(min=1, help="Processes of each training run.")] = 2,
    launch: Annotated[
        str, typer.Option(help="What starts the launchers, such as torchrun …; it has to start the ranks.")
    ] = "deepspeed",
) -> None:
    """A small model on a shop's own items, on CPUs: pre-train, fine-tune, score with titles masked, beside floors."""
    from mbsd.tools.studies.commands import LaunchConfig
    from mbsd.tools.studies.trial import Trial, run_trial

    settings = Trial(
        str(source.resolve()), images, tuple(mask_attribute), min_items, pretrain_steps, finetune_steps, scratch, seed
    )
    run_trial(settings, out, LaunchConfig(launch, cpu_ranks=ranks))


@app.command("floors")
def floors(
    catalog: CatalogDir,
    table: Annotated[Path, typer.Option(help="Of attributes or categories.")],
    out: Annotated[Path, typer.Option(help="JSON file for the metrics.")],
) -> None:
    """What logistic regressions on TF-IDF, colours and edges reach on a task table's test split."""
    from mbsd.catalog.reader import Catalog
    from mbsd.scoring.floors import write_floors

    write_floors(Catalog(catalog), table, out)


def _name_and_value(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not (name and found and value):
        raise UserError(f"--column {text}: expected OURS=NAME, such as query=search_term")
    return name, value


def _read_json(path: Path) -> dict[str, str]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


@exits_cleanly
def main() -> None:
    """Run the command line; a usage mistake is one line and exit code 2, like every other mistake of the user's."""
    run_app(app, "mbsd --help")


if __name__ == "__main__":
    main()
