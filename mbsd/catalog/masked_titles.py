"""Titles without the words of a task's answers, so that a model has to read them from the picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from mbsd.catalog.sources import ITEM_COLUMNS, Items
from mbsd.catalog.word_forms import MIN_LETTERS, UNSPACED_RUN, all_forms_of, forms_of, parts_of
from mbsd.errors import UserError
from mbsd.io.files import replacing


def mask_titles(source: Items, out: Path, attributes: Iterable[str] = ()) -> tuple[int, int]:
    """Write items to `out` (JSONL) without the words of any category, or of any value of `attributes`.

    Words are compared in lower case, without punctuation and in the singular ("T-Shirt," is the category "Tshirts",
    "woman" the value "Women"), and so are their parts between anything that is no letter ("dk.grey", "off_white"): the
    whole word is then removed. Names in scripts without spaces are removed wherever they occur, and so are their parts
    between spaces and punctuation.

    Returns:
        The number of items, and how many of their titles lost a word.

    Raises:
        UserError: the source cannot be read, no item has one of `attributes`, or `out` is the source.
    """
    if str(out.resolve()) in source.real_paths():
        raise UserError(f"{out}: is the source itself; write the masked items elsewhere")
    items, names = list(source), tuple(attributes)
    for name in names:
        if not any(name in item.attributes for item in items):
            known = sorted({known for item in items for known in item.attributes})
            raise UserError(
                f"{source.source}: no item has an attribute {name!r}; found {', '.join(known) or 'none at all'}"
            )
    answers = {item.category for item in items} | {item.attributes.get(name, "") for item in items for name in names}
    forms = {form for name in answers for word in (name, *parts_of(name)) for form in forms_of(word)}
    words = {form for form in forms if len(form) >= MIN_LETTERS}  # the "T" of "T shirt" has too many other senses
    named = {name for name in answers if name and not name.isascii()}
    runs = {run for name in named for run in UNSPACED_RUN.findall(name)}  # "服装" of "服装 > 连衣裙"
    unspaced = sorted(named | {run for run in runs if len(run) >= MIN_LETTERS}, key=len, reverse=True)
    changed = 0
    with replacing(out) as beside, beside.open("w", encoding="utf-8") as file:
        for item in items:
            masked = dataclasses.replace(item, title=_without(item.title, words, unspaced))
            changed += masked.title != item.title
            record = {name: getattr(masked, name) for name in ITEM_COLUMNS}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return len(items), changed


def _without(title: str, words: set[str], unspaced: list[str]) -> str:
    for name in unspaced:
        title = title.replace(name, " ")
    kept = [word for word in title.split() if words.isdisjoint(all_forms_of(word))]
    return " ".join(kept)
