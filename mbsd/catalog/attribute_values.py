"""When two spellings are one value of an attribute, and which values a text such as "Black / Red" holds."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from mbsd.catalog.queries import normalise_query

# Between the values of a list: not between digits, which "3/4 sleeve" and "1,5 l" have. NFKC has made "，" a ",".
_SEPARATOR = re.compile(r"[;|&+、]|(?<!\d)[,/]|[,/](?!\d)|\s(?:and|or)\s")
_NUMBERS = re.compile(r"\d+(?:,\d+){2,}|\d+(?:/\d+){2,}")  # three sizes or more are a list
_POINT = re.compile(r"(?<=\d)[.,/](?=\d)")  # part of a number


@lru_cache(maxsize=1 << 17)
def parts_of(text: str) -> tuple[str, ...]:
    """Return the values in a text, each in its normal form and once; a text that is no list is one value.

    The normal form is NFKC and case folded, its words without punctuation and with single spaces: "Navy-Blue" is
    "navy blue". A text of punctuation alone is a value as it stands.
    """
    folded = normalise_query(text)
    split = re.split("[,/]", folded) if _NUMBERS.fullmatch(folded) else _SEPARATOR.split(folded)
    parts = map(_words, split)
    return tuple(dict.fromkeys(part for part in parts if part)) or (folded,)


def key_of(part: str) -> str:
    """Return what two spellings of one value have in common: the normal form without its spaces."""
    return part.replace(" ", "") or part


@lru_cache(maxsize=1 << 17)
def value_keys(text: str) -> frozenset[str]:
    """Return the keys of all values in a text."""
    return frozenset(map(key_of, parts_of(text)))


def _words(text: str) -> str:
    """Letters, digits and their marks; everything else is a space, but for the point of a number."""
    held = _POINT.sub("\0", text)
    spaced = "".join(letter if letter == "\0" or letter.isalnum() or _is_mark(letter) else " " for letter in held)
    return " ".join(spaced.split()).replace("\0", ".")


def _is_mark(letter: str) -> bool:
    """Whether it is written onto the letter before it, as vowels of Hindi are; `isalnum` leaves these out."""
    return unicodedata.category(letter).startswith("M")
