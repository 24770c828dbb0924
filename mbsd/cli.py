"""`mbsd …`: everything that is not a training run (those are `launchers/`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mbsd.errors import UserError, exits_cleanly

app = typer.Typer(
    name="mbsd", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False,
    help="From a shop's product catalogue and search log to a pre-trained vision-and-language product model.",
)  # fmt: skip
catalog_app = typer.Typer(no_args_is_help=True, help="Validated catalogues: items and pictures in shards.")
tables_app = typer.Typer(no_args_is_help=True, help="Task tables over a catalogue.")
pairs_app = typer.Typer(no_args_is_help=True, help="Query-item pairs from behaviour logs.")
checkpoint_app = typer.Typer(no_args_is_help=True, help="Checkpoints of a run.")
bench_app = typer.Typer(no_args_is_help=True, help="Measurements, each against a baseline in the same run.")
app.add_typer(catalog_app, name="catalog")
app.add_typer(tables_app, name="tables")
app.add_typer(pairs_app, name="pairs")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(bench_app, name="bench")

# typer carries a copy of click and exports of its errors only BadParameter; what that derives from is every misuse.
USAGE_ERROR: type[BaseException] = typer.BadParameter.__bases__[0]

Out = Annotated[Path, typer.Option(help="Where the result goes.")]
CatalogDir = Annotated[Path, typer.Option("--catalog", help="Folder written by `mbsd catalog build`.")]
RunDir = Annotated[Path, typer.Argument(help="A run folder, or one that holds step-… folders.")]
Ranks = Annotated[list[int], typer.Option(help="Numbers of ranks to measure at; may be given several times.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the numbers there.")]
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
    from mbsd.catalog.synthetic import synthesise

    summary = synthesise(out, num_items=items, seed=seed, language=language, image_side=image_side, workers=workers)
    print(f"{out}: {summary.items} items, {summary.log_rows} rows of behaviour")


@catalog_app.command("build")
def catalog_build(
    source: Annotated[Path, typer.Argument(help="Items: TSV (2 to 5 columns, no header), JSONL or Parquet.")],
    out: Out,
    images: Annotated[Path | None, typer.Option(help="Folder or .tar that the items' image paths lie in.")] = None,
    attribute_where: Annotated[
        Path | None, typer.Option(help="JSON: attribute name -> image | title | both, where its value can be seen.")
    ] = None,
    max_side: Annotated[int, typer.Option(help="Pixels of a stored picture's long side.")] = 320,
    workers: Workers = 0,
) -> None:
    """Check and normalise every picture and write the catalogue; what is wrong goes to OUT/quarantine.jsonl."""
    from mbsd.catalog.sources import read_items
    from mbsd.catalog.store import build_catalog

    where = _read_json(attribute_where) if attribute_where is not None else None
    summary = build_catalog(
        read_items(source), images, out, workers=workers, max_side=max_side, attribute_where=where,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    print(
        f"{out}: {summary.items} items, {summary.with_image} with an image, {summary.quarantined} quarantined, "
        f"{summary.seconds:.1f} s, {summary.images_per_s:.0f} images/s"
    )
    for reason, count in summary.reasons.most_common(10):
        print(f"  {count} x {reason}")


@catalog_app.command("inspect")
def catalog_inspect(catalog: Annotated[Path, typer.Argument(help="Folder written by `mbsd catalog build`.")]) -> None:
    """Print what is in a catalogue, as JSON."""
    from mbsd.catalog.reader import inspect

    print(json.dumps(inspect(catalog), ensure_ascii=False, indent=1))


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
) -> None:
    """Write a task table from the items' own metadata."""
    from mbsd.catalog.reader import Catalog
    from mbsd.catalog.tables import derive_table

    summary = derive_table(kind, Catalog(catalog), out, seed=seed, negatives_per_positive=negatives_per_positive)
    print(f"{out}: {summary.describe()}")


@pairs_app.command("mine")
def pairs_mine(
    log: Annotated[Path, typer.Option(help="Parquet: user, query, item, kind (click | purchase), time.")],
    catalog: CatalogDir,
    out: Out,
    min_buyers: Annotated[int, typer.Option(help="Distinct buyers that make a pair a positive.")] = 2,
    negatives_per_positive: Annotated[int, typer.Option(help="Queries of the same category.")] = 1,
    rewrites_per_positive: Annotated[int, typer.Option(help="Queries with one term replaced.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the negatives' draw.")] = 0,
) -> None:
    """Write the pair table of stage 2: purchases, and hard negatives without any behaviour."""
    from mbsd.catalog.mining import mine_pairs
    from mbsd.catalog.reader import Catalog

    report = mine_pairs(
        log, Catalog(catalog), out, min_buyers=min_buyers, negatives_per_positive=negatives_per_positive,
        rewrites_per_positive=rewrites_per_positive, seed=seed,
    )  # fmt: skip
    print(
        f"{out}: {report.positives} purchases, {report.same_category} queries of the same category, {report.rewrites} "
        f"rewrites for {report.items} items, from {report.log_rows} rows ({report.unknown_rows} of unknown items)"
    )


@bench_app.command("lamb")
def bench_lamb(
    ranks: Ranks = [1, 2, 4],  # noqa: B006 (typer reads it as the option's default)
    turns: Annotated[int, typer.Option(min=1, help="Steps of each contestant.")] = 9,
    json_file: JsonFile = None,
) -> None:
    """LAMB's step under ZeRO-2 at BERT-base's size: milliseconds, bytes of state, ratios to AdamW and a plain loop."""
    from mbsd.bench.lamb import measure_lamb

    _write_json(json_file, measure_lamb(tuple(ranks), turns))


@checkpoint_app.command("list")
def checkpoint_list(run: RunDir) -> None:
    """Print a run's checkpoints: step, age, size, number of ranks, and whether all files are there at their sizes."""
    from mbsd.checkpoint.report import list_checkpoints

    list_checkpoints(run)


@checkpoint_app.command("verify")
def checkpoint_verify(run: RunDir) -> None:
    """Read every file of every checkpoint and compare its checksum; exit code 2 names what is wrong."""
    from mbsd.checkpoint.report import verify_checkpoints

    verify_checkpoints(run)


@bench_app.command("checkpoint")
def bench_checkpoint(
    ranks: Ranks = [1, 2, 4],  # noqa: B006 (as above)
    saves: Annotated[int, typer.Option(help="Saves of each kind; medians are reported.")] = 5,
    folder: Annotated[Path | None, typer.Option(help="Where is written; default: a temporary folder.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Stall, time to durable, bytes and time to resume at BERT-base's size, against DeepSpeed's own save."""
    from mbsd.bench.checkpoint import measure

    _write_json(json_file, measure(tuple(ranks), saves, folder))


@app.command("demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Another seed: another shop, another draw of everything.")] = 0,
    ranks: Annotated[int, typer.Option(help="Processes of each training run.")] = 2,
) -> None:
    """The whole story on a synthetic catalogue, on CPUs: synth, build, mine, two stages, fine-tune, evaluate."""
    from mbsd.demo import run_demo

    run_demo(out, seed=seed, ranks=ranks)


def _write_json(path: Path | None, numbers: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


@app.command("export")
def export(
    run: Annotated[Path, typer.Argument(help="A run folder (its newest checkpoint), or one of its checkpoints.")],
    out: Out,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx too, checked against torch.")] = False,
) -> None:
    """Write a transformers folder for inference: float32 weights, tokenizer, image processor."""
    from mbsd.checkpoint.export import export as export_run

    done = export_run(run, out, onnx=onnx)
    print(f"{out}: {done.architecture} of {done.source}, {done.weights}")
    if done.differences:
        views = ", ".join(f"{view} {largest:.1e}" for view, largest in done.differences.items())
        print(f"{out}/model.onnx: largest difference from torch: {views}")


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
    try:
        app(standalone_mode=False)
    except USAGE_ERROR as error:
        # Its message names the option or command, and what was expected.
        message = str(getattr(error, "format_message", error.__str__)())
        raise UserError(f"{message.rstrip('.')} (see `mbsd --help`)") from error
    except typer.Abort:
        sys.exit(130)


if __name__ == "__main__":
    main()
