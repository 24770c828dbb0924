"""`mbsd tables …`, `mbsd pairs …`: task tables over a catalogue.

Modules are imported where they are used, so that `--help` and a misuse answer at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mbsd.cli.options import CatalogDir, Group, GroupTitles, MaxSame, NearDistance, Out, columns_of
from mbsd.errors import UserError

tables_app = typer.Typer(no_args_is_help=True, help="Task tables over a catalogue.")
pairs_app = typer.Typer(no_args_is_help=True, help="Query-item pairs from behaviour logs, or from titles.")


@tables_app.command("build")
def tables_build(  # noqa: PLR0913 (options of a command line)
    kind: Annotated[Literal["pairs", "attributes", "alignment", "categories"], typer.Argument()],
    source: Annotated[Path, typer.Argument(help="TSV, JSONL or Parquet with the labels: a file, folder or pattern.")],
    catalog: Annotated[
        list[Path], typer.Option(help="Folder written by `mbsd catalog build`; of several catalogues NAME=FOLDER each.")
    ],
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

    Of several catalogues a further column, catalog, has the name of a row's; it may be missing where one alone has the
    id.

    A split is train, validation or test; without one a row's is drawn, equal items (--group) together, and of alignment
    all that pairs link. A row whose item is not in the catalogue, or that repeats an earlier one, is left out and
    counted.
    """
    from mbsd.catalog.groups import GroupOptions, group_kinds
    from mbsd.catalog.several import open_catalogs
    from mbsd.catalog.tables import LabelOptions, build_table

    grouped = GroupOptions(group_kinds(group), max_same, near_distance, group_titles)
    options = LabelOptions(contradictions, grouped, cut_negatives)
    summary = build_table(kind, source, open_catalogs(catalog), out, options)
    print(f"{out}: {summary.describe()}")
    print(f"  {summary.count.read} rows read")
    for note in [*summary.count.notes, *summary.split_notes]:
        print(f"  {note}")


@tables_app.command("derive")
def tables_derive(  # noqa: PLR0913 (options of a command line)
    kind: Annotated[Literal["attributes", "categories", "alignment"], typer.Argument()],
    catalog: CatalogDir,
    out: Out,
    seed: Annotated[int, typer.Option(help="Of the negatives' draw.")] = 0,
    negatives_per_positive: Annotated[
        int, typer.Option(help="Wrong tags for each right one; of alignment: other twins for each item.")
    ] = 1,
    ambiguous: Annotated[
        Path | None,
        typer.Option(help="YAML or JSON: attribute, value, values that may be true too; else the catalogue's own say."),
    ] = None,
    balance: Annotated[
        Literal["none", "value"],
        typer.Option(help="value: each tag is as often right as wrong in each split, so that it alone tells nothing."),
    ] = "none",
    min_items: Annotated[int, typer.Option(help="Categories with fewer items are left out.")] = 1,
    max_values: Annotated[
        int | None, typer.Option(help="Of an attribute with more values, the commonest so many alone are asked.")
    ] = None,
    max_characters: Annotated[
        int | None, typer.Option(help="Of a tag NAME:VALUE; longer ones are left out. Without: any number.")
    ] = None,
    group: Group = "title,picture",
    max_same: MaxSame = 100,
    near_distance: NearDistance = 0,
    group_titles: GroupTitles = None,
) -> None:
    """Write a task table from the items' own metadata; equal items (--group) are in one split.

    Of attributes, a wrong tag is one that is surely wrong: it shares no value with the item's own, and none that may be
    true beside it. Which values may both be true is found in the catalogue, printed and written to
    OUT.ambiguous.yaml; --ambiguous takes an edited copy, which replaces the list of each attribute that it names.

    Of alignment, for a catalogue with the twins of `mbsd catalog twins`: an item and its twin are one product, and an
    item and the twin of another one are two. That is another item of the split and, if there is one, of the category,
    with many of the title's words; never one with an equal title or picture.
    """
    from mbsd.catalog.groups import GroupOptions, group_kinds
    from mbsd.catalog.negatives import NegativeOptions, TagLimits
    from mbsd.catalog.reader import Catalog
    from mbsd.catalog.tables import DeriveOptions, Table, derive_table
    from mbsd.scoring.prior import describe_prior, describe_words_in_common

    if kind != "attributes" and (ambiguous is not None or balance != "none"):
        option = "--balance" if ambiguous is None else "--ambiguous"
        raise UserError(f"{option} is of attributes; {kind} have no wrong tags: leave it out")
    if kind == "categories" and negatives_per_positive != 1:
        raise UserError("--negatives-per-positive is of attributes and alignment; categories have none: leave it out")
    if kind != "categories" and min_items != 1:
        raise UserError(f"--min-items is of categories; {kind} have none that are small: leave it out")
    for option, value in (("--max-values", max_values), ("--max-characters", max_characters)):
        if kind != "attributes" and value is not None:
            raise UserError(f"{option} is of attributes; {kind} have no tags: leave it out")
    grouped = GroupOptions(group_kinds(group), max_same, near_distance, group_titles)
    negatives = NegativeOptions(negatives_per_positive, ambiguous, balance)
    shop = Catalog(catalog)
    summary = derive_table(
        kind, shop, out, DeriveOptions(seed, negatives, min_items, grouped, TagLimits(max_values, max_characters))
    )
    print(f"{out}: {summary.describe()}")
    for note in [*summary.count.notes, *summary.split_notes]:
        print(f"  {note}")
    if kind == "attributes":
        print(f"  {describe_prior(Table(out, shop))}")
    if kind == "alignment":
        print(f"  {describe_words_in_common(Table(out, shop), shop)}")


@tables_app.command("sample")
def tables_sample(
    table: Annotated[Path, typer.Option(help="A task table.")],
    share: Annotated[float, typer.Option(help="Of the training labels that are kept, such as 0.1.")],
    catalog: CatalogDir,
    out: Out,
    seed: Annotated[int, typer.Option(help="Of the draw; a smaller share is part of a larger one.")] = 0,
) -> None:
    """Write a task table with fewer training labels, as many of each class in proportion; other splits stay whole."""
    from mbsd.catalog.reader import Catalog
    from mbsd.catalog.sample import sample_table
    from mbsd.catalog.tables import Table

    shop = Catalog(catalog)
    whole = Table(table, shop)
    kept = sample_table(whole, shop, share, out, seed)
    print(f"{out}: {kept} of {len(whole.rows('train'))} training rows, the other splits whole")


@tables_app.command("concat")
def tables_concat(
    tables: Annotated[list[str], typer.Argument(help="TABLE=NAME: a task table, and its catalogue in data.catalogs.")],
    out: Out,
) -> None:
    """Put task tables of several catalogues together into one, for a run with data.catalogs.

    Each row names its catalogue. Splits stay as they are; categories are numbered anew, over all tables.
    """
    from mbsd.catalog.concat import concat_tables, read_parts

    parts = read_parts(tables)
    joined = concat_tables(parts, out)
    of = ", ".join(f"{owner.name} ({owner.num_items} items)" for owner in joined.owners.each)
    print(f"{out}: {len(joined)} rows of {joined.kind}, of {of}")


@pairs_app.command("mine")
def pairs_mine(  # noqa: PLR0913 (options of a command line)
    log: Annotated[str, typer.Option(help="Parquet, CSV or JSONL: a file, folder, glob, or URL of Parquet.")],
    catalog: CatalogDir,
    out: Out,
    min_buyers: Annotated[int, typer.Option(help="Distinct buyers that make a pair a positive.")] = 2,
    negatives_per_positive: Annotated[int, typer.Option(help="Queries of the same category.")] = 1,
    rewrites_per_positive: Annotated[int, typer.Option(help="Queries with one term replaced.")] = 1,
    max_pairs_per_item: Annotated[int, typer.Option(help="Most rows of an item; 0 = no limit.")] = 0,
    match: Annotated[
        str,
        typer.Option(
            help="In what a negative is like its positive: length, frequency in the log, both by commas, or none."
        ),
    ] = "length,frequency",
    replace_rewrites: Annotated[
        bool,
        typer.Option(
            help="Where no rewrite is searched as often as the positive: take a query of the category, or any rewrite."
        ),
    ] = True,
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

    columns = columns_of(column)
    settings = MiningSettings(
        min_buyers=min_buyers, negatives_per_positive=negatives_per_positive, seed=seed, columns=columns, split=split,
        rewrites_per_positive=rewrites_per_positive, max_pairs_per_item=max_pairs_per_item, master=master,
        validation_from=validation_from, test_from=test_from, engine=engine, memory_limit=memory_limit, spill=spill,
        threads=threads, max_record_lines=max_record_lines, match=group_kinds(match),
        replace_rewrites=replace_rewrites,
        group=GroupOptions(group_kinds(group), max_same, near_distance, group_titles),
    )  # fmt: skip
    shop = Catalog(catalog)
    found = mine_pairs(log, shop, out, settings, make_tagger(tagger, shop, lexicon))
    page = write_report(found, out, report or out.with_name(out.stem + ".report"), shop)
    print(f"{out}: {found.describe()}; report: {page}")
    for note in filter(None, [*found.notes, found.groups, found.describe_shortcuts()]):
        print(f"  {note}")


@pairs_app.command("derive")
def pairs_derive(  # noqa: PLR0913 (options of a command line)
    catalog: CatalogDir,
    out: Out,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    queries_per_item: Annotated[int, typer.Option(help="Most queries of a title.")] = 2,
    max_words: Annotated[int, typer.Option(help="Most words of a query.")] = 4,
    negatives_per_positive: Annotated[int, typer.Option(help="Items whose title lacks a word of the query.")] = 1,
    any_category: Annotated[float, typer.Option(help="Share of these that are of any category, not of the item's.")] = (
        0.2
    ),
    rewrites_per_positive: Annotated[int, typer.Option(help="Queries with one word replaced.")] = 1,
    min_titles: Annotated[int, typer.Option(help="A word in fewer titles is in no query.")] = 2,
    max_titles: Annotated[float, typer.Option(help="A word in a larger share of the titles is in no query.")] = 0.5,
    withhold: Annotated[
        list[str], typer.Option(help="An attribute: words of its values are in no query; may be repeated.")
    ] = [],  # noqa: B006
    withhold_categories: Annotated[
        bool, typer.Option("--withhold-categories", help="Words of the categories' names are in no query.")
    ] = False,
    group: Group = "title,picture",
    max_same: MaxSame = 100,
    near_distance: NearDistance = 0,
    group_titles: GroupTitles = None,
    lexicon: Annotated[Path | None, typer.Option(help="Of words: their types, for rewrites and --withhold.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder of report.json; without: OUT's name + .report.")] = None,
) -> None:
    """Write the pair table of stage 2 from the items' titles, where there is no behaviour log.

    A query is one to four of a title's words. It holds for the item itself; negatives are items whose title lacks one
    of them, and the item with a query of which one word is replaced by another of the same kind.

    Attributes that a model is to be evaluated on are withheld: the table names them, and a study with withheld=true
    scores these alone.
    """
    from mbsd.catalog.derived.pairs import derive_pairs, write_report
    from mbsd.catalog.derived.settings import DeriveSettings
    from mbsd.catalog.groups import GroupOptions, group_kinds
    from mbsd.catalog.reader import Catalog

    settings = DeriveSettings(
        seed=seed, queries_per_item=queries_per_item, max_words=max_words, any_category=any_category,
        negatives_per_positive=negatives_per_positive, rewrites_per_positive=rewrites_per_positive,
        min_titles=min_titles, max_titles=max_titles, withhold=tuple(withhold),
        withhold_categories=withhold_categories, lexicon=lexicon,
        group=GroupOptions(group_kinds(group), max_same, near_distance, group_titles),
    )  # fmt: skip
    shop = Catalog(catalog)
    found = derive_pairs(shop, out, settings)
    page = write_report(found, settings, out, report or out.with_name(out.stem + ".report"))
    first, *lines = found.describe()
    print(f"{out}: {first}; report: {page}")
    for line in lines:
        print(f"  {line}")
