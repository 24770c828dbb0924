"""What a shop says of the pairs it derives."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from mbsd.catalog.groups import GroupOptions
from mbsd.errors import UserError


@dataclass(frozen=True)
class DeriveSettings:
    """Settings of `mbsd pairs derive`.

    Attributes:
        seed: of every draw.
        queries_per_item: most queries of an item's title.
        max_words: most words of a query; lengths from 1 to it are drawn equally often.
        negatives_per_positive: items for which a query does not hold, for each for which it does.
        any_category: share of these from any category; the others are of the item's own.
        rewrites_per_positive: queries with one word replaced; where there is none, a further negative item stands for
            it, so that queries of all lengths have as many negatives.
        min_titles: a word in fewer titles is in no query.
        max_titles: a word in a larger share of all titles is in no query.
        withhold: attributes whose values' words are in no query.
        withhold_categories: whether the words of the categories' names are in none either.
        lexicon: of words (type, surface, value), as for `pairs mine`: rewrites of its types, and surface forms of what
            is withheld.
        group: which items are in one split, and none of each other's negatives.

    Raises:
        UserError: a value is out of range.
    """

    seed: int = 0
    queries_per_item: int = 2
    max_words: int = 4
    negatives_per_positive: int = 1
    any_category: float = 0.2
    rewrites_per_positive: int = 1
    min_titles: int = 2
    max_titles: float = 0.5
    withhold: tuple[str, ...] = ()
    withhold_categories: bool = False
    lexicon: Path | None = None
    group: GroupOptions = field(default_factory=GroupOptions)

    def __post_init__(self) -> None:
        lowest = {"negatives_per_positive": 0, "rewrites_per_positive": 0}
        for name in (f.name for f in fields(self) if f.type == "int" and f.name != "seed"):
            if getattr(self, name) < lowest.get(name, 1):
                raise UserError(f"{name} is {getattr(self, name)}; expected at least {lowest.get(name, 1)}")
        if not self.negatives_per_positive + self.rewrites_per_positive:
            raise UserError("negatives_per_positive and rewrites_per_positive are 0; expected one above, for negatives")
        if not 0 <= self.any_category <= 1:
            raise UserError(f"any_category is {self.any_category}; expected a share from 0 to 1")
        if not 0 < self.max_titles <= 1:
            raise UserError(f"max_titles is {self.max_titles}; expected a share of all titles, above 0 and at most 1")
