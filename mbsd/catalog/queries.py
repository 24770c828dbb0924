"""The one normal form of a query: mining counts queries in it, and tokenisation reads them in it."""

from __future__ import annotations

import unicodedata

# A longer "query" in a log is a pasted page or from a robot; the model reads 64 tokens of a query at most.
MAX_QUERY_CHARACTERS = 512


def normalise_query(text: str) -> str:
    """Return the text in NFKC, case folded, with single spaces inside and none at the ends; idempotent.

    All spellings of a query become one. NFKC is applied before and after folding, because folding can break it: "ſ"
    with a dot below folds to an "s" that composes with the dot.
    """
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())
