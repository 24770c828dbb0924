"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mbsd.errors import UserError

Out = Annotated[Path, typer.Option(help="Where the result goes.")]
CatalogDir = Annotated[Path, typer.Option("--catalog", help="Folder written by `mbsd catalog build`.")]
RunOrMirror = Annotated[
    str, typer.Argument(help="A run folder, one that holds step-… folders, or the URL of a run's mirror.")
]
Column = Annotated[
    list[str] | None,
    typer.Option(help="OURS=NAME for item_id, title, image, category or attributes; may be repeated."),
]
Workers = Annotated[int, typer.Option(help="Processes; 0 = one per core.")]
Group = Annotated[
    str,
    typer.Option(
        help="Items with an equal one of these are in one split: title, picture, near_picture, by commas; or none."
    ),
]
MaxSame = Annotated[int, typer.Option(help="Of --group: what more items than this share is a placeholder.")]
NearDistance = Annotated[int, typer.Option(help="Of --group near_picture: bits of 64 in which linked ones may differ.")]
GroupTitles = Annotated[
    Path | None,
    typer.Option(
        help="Of --group title: catalogue or items (JSONL, Parquet) with the titles to compare, where these are masked."
    ),
]


def columns_of(texts: list[str] | None) -> dict[str, str]:
    """Return our name of a column -> the shop's, of the texts of --column, OURS=NAME.

    Raises:
        UserError: one is not of that form.
    """
    columns = {}
    for text in texts or []:
        ours, found, theirs = text.partition("=")
        if not (ours and found and theirs):
            raise UserError(f"--column {text}: expected OURS=NAME, such as query=search_term")
        columns[ours] = theirs
    return columns


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Return the numbers between the commas of an option's text.

    Raises:
        UserError: one is none.
    """
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise UserError(f"{option} {text}: expected numbers, by commas") from None
