"""Which spellings are one word: singular and plural, with and without punctuation.

What is masked in titles and what no derived query may ask are compared alike, by sets of forms: two words are one where
their sets meet. No single form would do, for "mens" is a plural of "men", and that one of "man".
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import inflect

# Thai, Lao, Burmese, Khmer, Japanese, Chinese and Yi: scripts whose words touch each other.
UNSPACED = (  # ranges of a regular expression
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u312f\u3400-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff"
)
UNSPACED_RUN = re.compile(f"[{UNSPACED}]+")
MIN_LETTERS = 2  # of a form that is not the word itself: "s" is no plural of anything
_ENGLISH = inflect.engine()


@lru_cache(maxsize=1 << 20)
def forms_of(word: str) -> frozenset[str]:
    """Return a word in lower case without punctuation, and what it may be the plural of; none of punctuation alone."""
    plain = "".join(_runs(unicodedata.normalize("NFKC", word).casefold(), "LMN"))
    if not plain:
        return frozenset()
    forms = {plain.removesuffix("s"), plain.removesuffix("es")}  # "womens" is "women" too, before "woman"
    forms = {plain, *(form for form in forms if len(form) >= MIN_LETTERS)}
    forms |= {singular for form in forms if form.isascii() and (singular := _ENGLISH.singular_noun(form))}
    return frozenset(form for form in forms if form == plain or len(form) >= MIN_LETTERS)


def parts_of(word: str) -> tuple[str, ...]:
    """Return the parts of a word between punctuation: "dk", "grey" of "dk.grey"."""
    return tuple(_runs(word, "LMN"))


@lru_cache(maxsize=1 << 20)
def all_forms_of(word: str) -> frozenset[str]:
    """Return the forms of a word, of its parts, and of its parts between anything but letters ("grey" of "2grey")."""
    return frozenset().union(*map(forms_of, (word, *parts_of(word), *_runs(word, "LM"))))


def _runs(text: str, kinds: str) -> list[str]:
    """What stands between all other characters: letters L, the marks on them M, numbers N."""
    return "".join(letter if unicodedata.category(letter)[0] in kinds else " " for letter in text).split()
