"""What a query is, said once: mining counts queries in this form, and tokenisation reads them in it."""

from __future__ import annotations

import unicodedata

# A longer "query" in a log is a pasted page or a robot's; the model reads 64 tokens of it at most.
MAX_QUERY_CHARACTERS = 512


def normalise_query(text: str) -> str:
    """NFKC, case folded, runs of white space as one space, none at the ends; idempotent.

    Two spellings of a query are one query. NFKC stands on both sides of the folding because each can undo the other's
    normal form ("ſ" with a dot below becomes an "s" that composes).
    """
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())
