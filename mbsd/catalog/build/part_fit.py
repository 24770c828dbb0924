"""Whether folders are the parts of one catalogue: each once, all finished, of one source and the same options."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mbsd.catalog.build.finished_part import FinishedPart
from mbsd.catalog.record_files import some
from mbsd.errors import UserError

SHOWN = 200  # characters of an option's value: that of many tars is long


def open_parts(folders: Sequence[Path]) -> list[FinishedPart]:
    """Return the parts in the order of their numbers.

    Raises:
        UserError: a folder is no finished part, or they are not all parts of one catalogue; it names all that is wrong.
    """
    parts, wrong = [], []
    for folder in folders:
        try:
            parts.append(FinishedPart(folder))
        except UserError as error:
            wrong.append(str(error))
    different = list(_different(parts))
    wrong += different or _not_once(parts, others=bool(wrong))
    if wrong:
        raise UserError(f"these parts are not one catalogue: {'; '.join(wrong)}")
    return sorted(parts, key=lambda part: part.part.number)


def _different(parts: list[FinishedPart]) -> Iterator[str]:
    """What a part was built with or from, where most others were built with or from something else."""
    facts = [_facts(part) for part in parts]
    for name in {name: None for fact in facts for name in fact}:
        values = [_text(fact.get(name)) for fact in facts]
        usual = Counter(values).most_common(1)[0][0]
        example = parts[values.index(usual)].path
        for part, value in zip(parts, values, strict=True):
            if value != usual:
                yield f"{part.path}: {name} {value}, but {usual} in {example}; build all parts alike"


def _facts(part: FinishedPart) -> dict[str, Any]:
    """What is the same in all parts of one catalogue, by its name in an error."""
    return {
        "number of parts": part.part.count,
        "items": f"{part.rows} rows with sha256 {part.digest}",
        "block of rows": part.part.block,
        **{name: value for name, value in part.options.items() if name != "part"},
    }


def _not_once(parts: list[FinishedPart], *, others: bool) -> list[str]:
    """Which parts are there twice or, where no `others` may be these, are missing."""
    folders = defaultdict(list)
    for part in parts:
        folders[part.part.number].append(str(part.path))
    count = parts[0].part.count if parts else 0
    wrong = [f"{' and '.join(same)} are both part {n} of {count}" for n, same in folders.items() if len(same) > 1]
    missing = [n for n in range(1, count + 1) if n not in folders]
    if missing and not others:
        wrong.append(f"of {count} parts, {some(map(str, missing))} {'is' if len(missing) == 1 else 'are'} missing")
    return [f"{text}; give the folder of each part once" for text in wrong]


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
