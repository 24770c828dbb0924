"""`mbsd pairs derive`: the pair table of stage 2 where a shop has no behaviour log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mbsd.cli.options import CatalogDir, Group, MaxSame, NearDistance, Out


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
        group=GroupOptions(group_kinds(group), max_same, near_distance),
    )  # fmt: skip
    shop = Catalog(catalog)
    found = derive_pairs(shop, out, settings)
    page = write_report(found, settings, out, report or out.with_name(out.stem + ".report"))
    first, *lines = found.describe()
    print(f"{out}: {first}; report: {page}")
    for line in lines:
        print(f"  {line}")
