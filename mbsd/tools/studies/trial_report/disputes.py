"""Test items that the model has right and the floor wrong, and the other way round, by what was confused with what."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from mbsd.catalog.thumbnail import thumbnail_of
from mbsd.tools.studies.trial_report.inputs import Answers, Compared, shown_floor
from mbsd.tools.studies.trial_report.margins import best_floor

PAIRS = 8  # of which pictures are shown, in each direction
EXAMPLES = 4  # of each pair
THUMBNAIL = 96  # pixels


@dataclass(frozen=True)
class Said:
    """An answer, its probability, and that of the true label; None: not known."""

    answer: str
    probability: float
    of_label: float | None


@dataclass(frozen=True)
class Example:
    """A test row: its item (picture a data URI, "" without one), and both answers."""

    row: int
    item_id: str
    title: str
    picture: str
    model: Said
    floor: Said


@dataclass(frozen=True)
class Pair:
    """A confusion: `count` rows are `true`, and whoever is wrong says `said`; of an attribute, about the tag."""

    tag: str
    true: str
    said: str
    count: int
    examples: list[Example]


@dataclass(frozen=True)
class Disputes:
    """A view's test rows by who has them right, and the pairs, most frequent first.

    Attributes:
        floor: the best by accuracy, as shown.
        model_pairs, floor_pairs: of rows that the model alone, and the floor alone, has right.
        more_model, more_floor: rows of pairs that are not shown.
    """

    view: str
    floor: str
    both: int
    model_alone: int
    floor_alone: int
    neither: int
    model_pairs: list[Pair]
    floor_pairs: list[Pair]
    more_model: int
    more_floor: int


def find_disputes(compared: Compared, view: str, pairs: int = PAIRS, examples: int = EXAMPLES) -> Disputes:
    """The first run of the main model against the floor that has most rows right, of those that read the view."""
    best = best_floor(compared, view, "accuracy")
    floor, model = compared.floors[best], compared.models[compared.main][view][0]
    ours, theirs = model.answer == compared.label, floor.answer == compared.label
    found = []
    for chosen, wrong in ((ours & ~theirs, floor), (theirs & ~ours, model)):
        groups = _groups(compared, np.flatnonzero(chosen), wrong)
        shown = [_pair(compared, rows, wrong, (model, floor), examples) for rows in groups[:pairs]]
        found.append((shown, sum(map(len, groups[pairs:]))))
    (model_pairs, more_model), (floor_pairs, more_floor) = found
    return Disputes(
        view, shown_floor(best)[0], int(np.sum(ours & theirs)), int(np.sum(ours & ~theirs)),
        int(np.sum(theirs & ~ours)), int(np.sum(~ours & ~theirs)), model_pairs, floor_pairs, more_model, more_floor,
    )  # fmt: skip


def _groups(compared: Compared, places: np.ndarray[tuple[int], np.dtype[np.int64]], wrong: Answers) -> list[list[int]]:
    """Places in the test rows by (tag, true, said), largest group first, the surest mistake of each first."""
    groups: dict[tuple[str, int, int], list[int]] = defaultdict(list)
    for place in places.tolist():
        groups[_tag(compared, place), int(compared.label[place]), int(wrong.answer[place])].append(place)
    by_size = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return [sorted(rows, key=lambda place: -wrong.probability[place]) for _, rows in by_size]


def _pair(
    compared: Compared, places: list[int], wrong: Answers, answers: tuple[Answers, Answers], examples: int
) -> Pair:
    first, names = places[0], compared.names
    shown = [_example(compared, place, *answers) for place in places[:examples]]
    return Pair(_tag(compared, first), names[compared.label[first]], names[wrong.answer[first]], len(places), shown)


def _example(compared: Compared, place: int, model: Answers, floor: Answers) -> Example:
    def said(answers: Answers) -> Said:
        of_label = None if answers.of_label is None else float(answers.of_label[place])
        return Said(compared.names[answers.answer[place]], float(answers.probability[place]), of_label)

    item = int(compared.items[place])
    record = compared.catalog.record(item)
    picture = thumbnail_of(compared.catalog, item, THUMBNAIL)
    return Example(int(compared.rows[place]), record.item_id, record.title, picture, said(model), said(floor))


def _tag(compared: Compared, place: int) -> str:
    return str(compared.table.column("text")[compared.rows[place]]) if compared.is_binary else ""
