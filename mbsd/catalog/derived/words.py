"""The words of a title: what a derived query is made of, and when a title contains one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from mbsd.catalog.queries import normalise_query
from mbsd.catalog.word_forms import MIN_LETTERS, UNSPACED, UNSPACED_RUN, all_forms_of, forms_of, parts_of

_CHUNK = re.compile(rf"[{UNSPACED}]+|[^\s/&,;:|()\[\]{{}}\"!?+*、。·{UNSPACED}]+")
_EDGE = "-._'’`~#@%^=<>$"
COMPOUND = 4  # letters of a withheld word that is found inside a compound too ("skyblue"): "red" is in "credit"


@dataclass(frozen=True, slots=True)
class Word:
    """title[start:end] of a normalised title; a query has it as `text`."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Keys:
    """What a word is compared by: the forms (see `word_forms`) of the whole, and of each of its parts ("t-shirt")."""

    whole: frozenset[str]
    parts: tuple[frozenset[str], ...]

    def all(self) -> frozenset[str]:
        """Return the forms of the whole and of the parts."""
        return self.whole.union(*self.parts)


def words_of(title: str) -> list[Word]:
    """Return the words of a title, normalised as a query is, in their order.

    In scripts whose words touch each other, a word is two neighbouring characters, and its neighbours overlap it.
    """
    text = normalise_query(title)
    words = []
    for chunk in _CHUNK.finditer(text):
        start, found = chunk.start(), chunk.group()
        if UNSPACED_RUN.match(found):
            if len(found) == 1:
                words.append(Word(found, start, start + 1))
            words += [Word(found[k : k + 2], start + k, start + k + 2) for k in range(len(found) - 1)]
            continue
        stripped = found.strip(_EDGE)
        if stripped and keys_of(stripped).whole:
            start += found.index(stripped)
            words.append(Word(stripped, start, start + len(stripped)))
    return words


@lru_cache(maxsize=1 << 20)
def keys_of(word: str) -> Keys:
    """Return what a normalised word is compared by: "men's" and "mens" have a form in common with "man"."""
    plain = re.sub("['’]s?$", "", word)
    return Keys(forms_of(plain), tuple(map(forms_of, parts_of(plain))))


def is_content(word: str) -> bool:
    """Return whether a word says something: two characters or more, a letter among them, no English function word."""
    letters = "".join(parts_of(word))
    return len(letters) > 1 and any(map(str.isalpha, letters)) and word not in ENGLISH_STOP_WORDS


def query_text(words: Iterable[Word]) -> str:
    """Return words in their order as a query; those that overlap become one, others are separated by a space."""
    text, behind = "", -1
    for word in words:
        overlap = max(0, behind - word.start)
        text += word.text[overlap:] if overlap else f" {word.text}" if text else word.text
        behind = word.end
    return text


class Withheld:
    """Words that no query may have: those of some names, such as the values of an attribute.

    Args:
        names: texts; each of their words is withheld, and in unspaced scripts each run of characters as a whole.
    """

    def __init__(self, names: Iterable[str]) -> None:
        texts = {normalise_query(name) for name in names}
        self._runs = sorted({run for text in texts for run in UNSPACED_RUN.findall(text)}, key=len, reverse=True)
        spaced = {word.text for text in texts for word in words_of(text) if not UNSPACED_RUN.match(word.text)}
        forms = {form for word in spaced for form in keys_of(word).all()}
        self._keys = {form for form in forms if len(form) >= MIN_LETTERS}
        self._long = tuple(sorted(key for key in self._keys if len(key) >= COMPOUND))

    def allowed(self, title: str) -> list[Word]:
        """Return the words of a title that may be in a query: content words that are not withheld."""
        text = normalise_query(title)
        for run in self._runs:
            text = text.replace(run, " " * len(run))
        # Blanks are kept until here, so that two words beside a blanked one do not become neighbours that overlap.
        return [word for word in _positioned(text) if is_content(word.text) and not self.has(word.text)]

    def has(self, word: str) -> bool:
        """Return whether a normalised word is withheld: itself, a part of it, or a compound that begins or ends so."""
        forms = all_forms_of(word)
        return not self._keys.isdisjoint(forms) or any(
            form.startswith(self._long) or form.endswith(self._long) for form in forms
        )


def _positioned(text: str) -> list[Word]:
    """`words_of` a normalised text that may have several blanks; positions are those in it."""
    return [
        Word(word.text, chunk.start() + word.start, chunk.start() + word.end)
        for chunk in re.finditer(r"\S+", text)
        for word in words_of(chunk.group())
    ]
