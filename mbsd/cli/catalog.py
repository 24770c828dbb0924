"""`mbsd catalog …`: from a shop's files to a catalogue.

Modules are imported where they are used, so that `--help` and a misuse answer at once.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mbsd.cli.options import CatalogDir, Column, Out, Workers, columns_of, numbers
from mbsd.errors import UserError
from mbsd.io.console import print_json

if TYPE_CHECKING:
    from mbsd.catalog.build.build import BuildSummary

MaxRejects = Annotated[
    float, typer.Option(help="Share of the rows naming a picture whose pictures may be rejected; 1 = any number.")
]
Restart = Annotated[bool, typer.Option("--restart", help="Begin anew, where an unfinished build lies.")]

catalog_app = typer.Typer(no_args_is_help=True, help="Validated catalogues: items and pictures in shards.")


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
    query_terms: Annotated[
        str, typer.Option(help="Shares of the queries with 1, 2, 3 and 4 terms: how long the log's queries are.")
    ] = "0.45,0.35,0.15,0.05",
    workers: Workers = 0,
) -> None:
    """Draw a fashion catalogue with a behaviour log: items.jsonl, images/, log.parquet, attribute_where.json.

    With --duplicates, the column product_id of items.jsonl names each item's product, and all items of a product are in
    one split.
    """
    from mbsd.catalog.synthetic.shop import ShopOptions, synthesise

    options = ShopOptions(items, seed, language, image_side, duplicates, numbers(query_terms, "--query-terms"))
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
    max_rejects: MaxRejects = 0.05,
    column: Column = None,
    image_seconds: Annotated[float, typer.Option(help="Longest time to read and decode a picture.")] = 10.0,
    part: Annotated[
        str | None, typer.Option(help="K/N: build part K of N alone, on this machine, for `mbsd catalog merge`.")
    ] = None,
    restart: Restart = False,
    workers: Workers = 0,
) -> None:
    """Check and normalise every picture and write the catalogue; what is wrong goes to OUT/quarantine.jsonl.

    JSONL and Parquet have the columns item_id, title, image, category and attributes (name: value); only a title or an
    image is required, and other columns are named and not read. A missing value is null, NaN or empty. A row that
    repeats an item_id, or has neither title nor picture, is left out and counted.

    The same command again goes on where an interrupted one stopped.

    With --part, OUT is the folder of that part. All parts read the same SOURCE and have the same options.
    """
    from mbsd.catalog.build.build import BuildOptions, ImageLimits, PartOf, build_catalog
    from mbsd.catalog.sources import read_items

    options = BuildOptions(
        workers=workers, max_side=max_side, max_rejects=max_rejects, limits=ImageLimits(seconds=image_seconds),
        attribute_where=_read_json(attribute_where) if attribute_where is not None else {},
        restart=restart, progress=sys.stderr.isatty(), part=PartOf.parse(part) if part is not None else None,
    )  # fmt: skip
    items = read_items(source, columns_of(column))
    summary = build_catalog(items, images, out, options)
    left_out = summary.count.describe_left_out()
    if options.part is not None:
        print(
            f"{out}: {options.part}: {summary.items} items, {summary.with_image} with an image, {summary.quarantined} "
            f"quarantined, {summary.repeated} rows with an item id of before, {summary.seconds:.1f} s, "
            f"{summary.images_per_s:.0f} images/s; next: mbsd catalog merge"
        )
        print(f"  {summary.count.read} rows of this part; left out: {left_out}")
    else:
        _print_catalog(out, summary)
        print(f"  {summary.count.read} rows read; left out: {left_out}")
    for note in items.notes():
        print(f"  {note}")
    if summary.resumed_from:
        print(f"  continued behind row {summary.resumed_from}")
    if not summary.has_image_root:
        print("  no picture was looked up: no --images was given")
    _print_reasons(summary)


@catalog_app.command("merge")
def catalog_merge(
    parts: Annotated[list[Path], typer.Argument(help="Folders written by `mbsd catalog build --part K/N`, all N.")],
    out: Out,
    max_rejects: MaxRejects = 0.05,
    restart: Restart = False,
) -> None:
    """Make one catalogue of its parts, the same byte for byte as one built at once. No picture is decoded again.

    The folders of the parts are left as they are. The same command again goes on where an interrupted one stopped.
    """
    from mbsd.catalog.build.merge import merge_catalog

    summary = merge_catalog(parts, out, max_rejects=max_rejects, restart=restart, progress=sys.stderr.isatty())
    _print_catalog(out, summary)
    print(f"  {summary.count.read} rows of {len(parts)} parts; left out: {summary.count.describe_left_out()}")
    if summary.resumed_from:
        print(f"  continued behind row {summary.resumed_from}")
    _print_reasons(summary)


@catalog_app.command("mask")
def catalog_mask(
    source: Annotated[Path, typer.Argument(help="Items, as of `mbsd catalog build`.")],
    out: Out,
    attributes: Annotated[list[str], typer.Option("--attribute", help="Its values' words too; may be repeated.")] = [],  # noqa: B006
    column: Column = None,
) -> None:
    """Write the items (JSONL) with titles that no longer name any category, or any value of the attributes.

    The columns of OUT have the names that they have here.
    """
    from mbsd.catalog.masked_titles import mask_titles
    from mbsd.catalog.sources import read_items

    items = read_items(source, columns_of(column))
    count, changed = mask_titles(items, out, attributes)
    print(f"{out}: {count} items, {changed} titles masked")
    for note in items.notes():
        print(f"  {note}")


@catalog_app.command("twins")
def catalog_twins(
    catalog: CatalogDir,
    out: Out,
    seed: Annotated[int, typer.Option(help="Of the crops and the dropped words.")] = 0,
    crop: Annotated[str, typer.Option(help="Least and largest share of the picture's area that is kept.")] = "0.6,0.9",
    drop_words: Annotated[float, typer.Option(help="Probability that a word of the title is dropped.")] = 0.3,
) -> None:
    """Write the source of a catalogue with every item and its twin: another crop, and words of the title dropped.

    The twin has the item's id with ~twin behind it, and perhaps a number. `mbsd tables derive alignment` makes of such
    a catalogue a table that asks which two are one product, where nobody has labelled pairs.
    """
    from mbsd.catalog.reader import Catalog
    from mbsd.catalog.twins.make import TwinOptions, make_twins

    shop = Catalog(catalog)
    summary = make_twins(shop, out, TwinOptions(seed, numbers(crop, "--crop"), drop_words))
    print(
        f"{out}: {summary.twins} items and their twins, {summary.with_image} of these with another crop, "
        f"{summary.shortened} with words dropped"
    )
    print(f"  next: mbsd catalog build {shlex.join(summary.build)} --out DIR")


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

    columns = columns_of(column)
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


def _print_catalog(out: Path, summary: BuildSummary) -> None:
    print(
        f"{out}: {summary.items} items, {summary.with_image} with an image, {summary.quarantined} quarantined, "
        f"{summary.repeated} rows with an item id of before, {summary.same_picture} items with a picture of before, "
        f"{summary.seconds:.1f} s, {summary.images_per_s:.0f} images/s"
    )


def _print_reasons(summary: BuildSummary) -> None:
    for reason, count in summary.reasons.most_common(10):
        print(f"  {count} x {reason}")


def _read_json(path: Path) -> dict[str, str]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
