"""`mbsd catalog …`, `mbsd tables …`, `mbsd pairs …`: from a shop's files to a catalogue and its task tables.

Modules are imported where they are used, so that `--help` and a misuse answer at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from mbsd.cli.options import CatalogDir, Group, GroupTitles, MaxSame, NearDistance, Out, Workers
from mbsd.errors import UserError
from mbsd.io.console import print_json

catalog_app = typer.Typer(no_args_is_help=True, help="Validated catalogues: items and pictures in shards.")
tables_app = typer.Typer(no_args_is_help=True, help="Task tables over a catalogue.")
pairs_app = typer.Typer(no_args_is_help=True, help="Query-item pairs from behaviour logs, or from titles.")


@catalog_app.command("synth")
def catalog_synth(  # noqa: PLR0913 (options of a command line)
    out: Annotated[Path, typer.Argument(help="A new folder for items, pictures and log.")],
    items: Annotated[int, typer.Option(help="Number of products.")] = 2000,
    seed: Annotated[int, typer.Option(help="Another seed draws another shop.")] = 0,
    language: Annotated[Literal["zh", "en"], typer.Option(help="Of titles, queries and attributes.")] = "zh",
    image_side: Annotated[int, typer.Option(help="Pixels of a picture's side.")] = 224,
    duplicates: Annotated[
        float, typer.Option(help="Share of the items that are another item's product, sold by another shop.")
    ] = 0.0,
    workers: Workers = 0,
) -> None:
    """Draw a fashion catalogue with a behaviour log: items.jsonl, images/, log.parquet, attribute_where.json.

    With --duplicates, the column product_id of items.jsonl names each item's product, and all items of a product are in
    one split.
    """
    from mbsd.catalog.synthetic.shop import ShopOptions, synthesise

    options = ShopOptions(items, seed, language, image_side, duplicates)
    summary = synthesise(out, options, workers)
    print(f"{out}: {summary.items} items, {summary.log_rows} rows of behaviour")


@catalog_app.command("build")
def catalog_build(  # noqa: PLR0913 (options of a command line)
    source: Annotated[
        Path, typer.Argument(help="Items: TSV (2 to 5 columns), JSONL or Parquet: a file, a folder or a pattern.")
    ],
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
    column: Annotated[
        list[str] | None,
        typer.Option(help="OURS=NAME for item_id, title, image, category or attributes; may be repeated."),
    ] = None,
    image_seconds: Annotated[float, typer.Option(help="Longest time to read and decode a picture.")] = 10.0,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, where an unfinished build lies.")] = False,
    workers: Workers = 0,
) -> None:
    """Check and normalise every picture and write the catalogue; what is wrong goes to OUT/quarantine.jsonl.

    JSONL and Parquet have the columns item_id, title, image, category and attributes (name: value); only a title or an
    image is required, and other columns are named and not read. A missing value is null, NaN or empty. A row that
    repeats an item_id, or has neither title nor picture, is left out and counted.

    The same command again goes on where an interrupted one stopped.
    """
    from mbsd.catalog.build.build import BuildOptions, ImageLimits, build_catalog
    from mbsd.catalog.sources import read_items

    options = BuildOptions(
        workers=workers, max_side=max_side, max_rejects=max_rejects, limits=ImageLimits(seconds=image_seconds),
        attribute_where=_read_json(attribute_where) if attribute_where is not None else {},
        restart=restart, progress=sys.stderr.isatty(),
    )  # fmt: skip
    items = read_items(source, dict(_name_and_value(text) for text in column or []))
    summary = build_catalog(items, images, out, options)
    print(
        f"{out}: {summary.items} items, {summary.with_image} with an image, {summary.quarantined} quarantined, "
        f"{summary.repeated} rows with an item id of before, {summary.same_picture} items with a picture of before, "
        f"{summary.seconds:.1f} s, {summary.images_per_s:.0f} images/s"
    )
    print(f"  {summary.count.read} rows read; left out: {summary.count.describe_left_out()}")
    for note in items.notes():
        print(f"  {note}")
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
    from mbsd.catalog.sources import read_items

    items = read_items(source)
    count, changed = mask_titles(items, out, attributes)
    print(f"{out}: {count} items, {changed} titles masked")
    for note in items.notes():
        print(f"  {note}")


@catalog_app.command("inspect")
def catalog_inspect(catalog: Annotated[Path, typer.Argument(help="Folder written by `mbsd catalog build`.")]) -> None:
    """Print what is in a catalogue, as JSON."""
    from mbsd.catalog.inspection import inspect_catalog

    print_json(inspect_catalog(catalog))


@catalog_app.command("keys")
def catalog_keys(  # noqa: PLR0913 (options of a command line)
    catalog: Annotated[Path, typer.Argument(help="Folder written by `mbsd catalog build`.")],
    items: Annotated[
        Path | None, typer.Option(help="The items that it was built from (JSONL or Parquet), for --product-column.")
    ] = None,
    product_column: Annotated[
        str, typer.Option(help="What names an item's product: a column of --items, else an attribute of the catalogue.")
    ] = "",
    column: Annotated[
        list[str] | None, typer.Option(help="Of --items: OURS=NAME for item_id, title or image; may be repeated.")
    ] = None,
    near_picture: Annotated[
        bool, typer.Option("--near-picture", help="Also keys of pictures that look the same, and a page to judge them.")
    ] = False,
    near_distance: Annotated[int, typer.Option(help="Bits of 64 in which linked near pictures may differ.")] = 0,
    max_same: Annotated[
        int, typer.Option(help="A title or picture of more items than this is a placeholder and joins none.")
    ] = 100,
    workers: Workers = 0,
) -> None:
    """Write the identity keys: which items are the same product. The contrastive stage reads them.

    Items are the same product where their product, their title (in NFKC, without case and extra spaces) or their
    picture is the same. Written again, keys replace those of before.
    """
    from mbsd.catalog.keys import NEAR_FILE, KeyOptions, ProductColumn, write_keys
    from mbsd.catalog.reader import Catalog

    columns = dict(_name_and_value(text) for text in column or [])
    if not product_column and (items is not None or columns):
        raise UserError("--items and --column are read for products alone, and no --product-column is named; name it")
    if columns and items is None:
        raise UserError(f"--column {(column or [])[0]}: names a column of --items, which is not given; give it")
    options = KeyOptions(
        product=ProductColumn(product_column, items, columns) if product_column else None, near_picture=near_picture,
        near_distance=near_distance, max_same=max_same, workers=workers,
    )  # fmt: skip
    shop = Catalog(catalog)
    report = write_keys(shop, options)
    folder = shop.path / "keys"
    print(f"{folder}: {report.with_another} of {report.items} items share a key with another\n")
    print(report.describe())
    print(f"report: {folder / 'report.json'}" + (f", {folder / NEAR_FILE}" if near_picture else ""))


@tables_app.command("build")
def tables_build(  # noqa: PLR0913 (options of a command line)
    kind: Annotated[Literal["pairs", "attributes", "alignment", "categories"], typer.Argument()],
    source: Annotated[Path, typer.Argument(help="TSV, JSONL or Parquet with the labels: a file, folder or pattern.")],
    catalog: CatalogDir,
    out: Out,
    contradictions: Annotated[
        Literal["stop", "drop"], typer.Option(help="Labels that say different things of the same: stop, or drop both.")
    ] = "stop",
    group: Group = "title,picture",
    max_same: MaxSame = 100,
    near_distance: NearDistance = 0,
    group_titles: GroupTitles = None,
    cut_negatives: Annotated[
        bool,
        typer.Option(
            "--cut-negatives",
            help="Of alignment: negative pairs link no items, and those between two splits are left out.",
        ),
    ] = False,
) -> None:
    """Write a task table from labels.

    Columns of JSONL and Parquet; behind the semicolon those that may be missing:

    pairs: item_id, text (the query), label (0 or 1); source, evidence, split

    attributes: item_id, text (the tag, name:value), label; where, split

    alignment: item_id_a, item_id_b, label; split

    categories: item_id, category; split

    Columns of a TSV: pairs and attributes have text, title, image, label; alignment has title, image, title, image,
    label; categories has title, image, category. A TSV names items by title and image: its catalogue is one whose ids
    are made of these, built from a TSV or from rows without item_id.

    A split is train, validation or test; without one a row's is drawn, equal items (--group) together, and of alignment
    all that pairs link. A row whose item is not in the catalogue, or that repeats an earlier one, is left out and
    counted.
    """
    from mbsd.catalog.groups import GroupOptions, group_kinds
    from mbsd.catalog.reader import Catalog
    from mbsd.catalog.tables import LabelOptions, build_table

    grouped = GroupOptions(group_kinds(group), max_same, near_distance, group_titles)
    options = LabelOptions(contradictions, grouped, cut_negatives)
    summary = build_table(kind, source, Catalog(catalog), out, options)
    print(f"{out}: {summary.describe()}")
    print(f"  {summary.count.read} rows read")
    for note in [*summary.count.notes, *summary.split_notes]:
        print(f"  {note}")


@tables_app.command("derive")
def tables_derive(  # noqa: PLR0913 (options of a command line)
    kind: Annotated[Literal["attributes", "categories"], typer.Argument()],
    catalog: CatalogDir,
    out: Out,
    seed: Annotated[int, typer.Option(help="Of the negatives' draw.")] = 0,
    negatives_per_positive: Annotated[int, typer.Option(help="Wrong tags for each right one.")] = 1,
    min_items: Annotated[int, typer.Option(help="Categories with fewer items are left out.")] = 1,
    group: Group = "title,picture",
    max_same: MaxSame = 100,
    near_distance: NearDistance = 0,
    group_titles: GroupTitles = None,
) -> None:
    """Write a task table from the items' own metadata; equal items (--group) are in one split."""
    from mbsd.catalog.groups import GroupOptions, group_kinds
    from mbsd.catalog.reader import Catalog
    from mbsd.catalog.tables import DeriveOptions, derive_table

    grouped = GroupOptions(group_kinds(group), max_same, near_distance, group_titles)
    options = DeriveOptions(seed, negatives_per_positive, min_items, grouped)
    summary = derive_table(kind, Catalog(catalog), out, options)
    print(f"{out}: {summary.describe()}")
    for note in summary.split_notes:
        print(f"  {note}")


@pairs_app.command("mine")
def pairs_mine(  # noqa: PLR0913 (options of a command line)
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
    max_record_lines: Annotated[
        int,
        typer.Option(
            help="Of CSV: lines of a row at most; a quote open for longer costs its own line, which is counted."
        ),
    ] = 10,
    split: Annotated[
        Literal["item", "time"], typer.Option(help="What train, validation and test are cut by.")
    ] = "item",
    validation_from: Annotated[str, typer.Option(help="Of --split time: a date, or a share such as 0.8.")] = "",
    test_from: Annotated[str, typer.Option(help="Of --split time: a date, or a share such as 0.9.")] = "",
    group: Group = "title,picture",
    max_same: MaxSame = 100,
    near_distance: NearDistance = 0,
    group_titles: GroupTitles = None,
    tagger: Annotated[str, typer.Option(help="What finds terms: gazetteer, or transformers:PATH.")] = "gazetteer",
    lexicon: Annotated[Path | None, typer.Option(help="Terms of your own for the tagger.")] = None,
    engine: Annotated[Literal["duckdb", "spark"], typer.Option(help="Both give the same table.")] = "duckdb",
    master: Annotated[str, typer.Option(help="Of Spark, such as spark://host:7077; without: this machine.")] = "",
    memory_limit: Annotated[str, typer.Option(help="Of the engine, such as 4GB.")] = "",
    spill: Annotated[
        str,
        typer.Option(
            help="Folder for what does not fit into memory, and for rewritten files; of a Spark cluster, a shared one."
        ),
    ] = "",
    threads: Annotated[int, typer.Option(help="0 = one per core.")] = 0,
    report: Annotated[Path | None, typer.Option(help="Folder of report.json; without: OUT's name + .report.")] = None,
) -> None:
    """Write the pair table of stage 2: purchases, and hard negatives without any behaviour.

    The log has the columns user, query, item (the item's id), kind (purchase, or any other behaviour) and, for --split
    time, time: a timestamp, ISO 8601, or s, ms, us or ns since 1970; without a zone it is UTC. No other column is read.
    A row that cannot be used is left out and counted by its reason, with the line of the first; these and the rows that
    were used are all rows of the log.
    """
    from mbsd.catalog.groups import GroupOptions, group_kinds
    from mbsd.catalog.mining.mine import MiningSettings, mine_pairs
    from mbsd.catalog.mining.model_tagger import make_tagger
    from mbsd.catalog.mining.report import write_report
    from mbsd.catalog.reader import Catalog

    columns = dict(_name_and_value(text) for text in column or [])
    settings = MiningSettings(
        min_buyers=min_buyers, negatives_per_positive=negatives_per_positive, seed=seed, columns=columns, split=split,
        rewrites_per_positive=rewrites_per_positive, max_pairs_per_item=max_pairs_per_item, master=master,
        validation_from=validation_from, test_from=test_from, engine=engine, memory_limit=memory_limit, spill=spill,
        threads=threads, max_record_lines=max_record_lines,
        group=GroupOptions(group_kinds(group), max_same, near_distance, group_titles),
    )  # fmt: skip
    shop = Catalog(catalog)
    found = mine_pairs(log, shop, out, settings, make_tagger(tagger, shop, lexicon))
    page = write_report(found, out, report or out.with_name(out.stem + ".report"), shop)
    print(f"{out}: {found.describe()}; report: {page}")
    for note in [*found.notes, *([found.groups] if found.groups else [])]:
        print(f"  {note}")


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
