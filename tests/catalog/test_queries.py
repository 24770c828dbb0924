from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mbsd.catalog.queries import MAX_QUERY_CHARACTERS, normalise_query

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SPACE = st.text(st.sampled_from(" \t\n\u00a0\u2003\u3000"), min_size=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  ＮＩＫＥ　红色\tT恤 ", "nike 红色 t恤"),
        ("Straße", "strasse"),
        ("ſ\u0323", "ṣ"),
        ("ΜΆΪΟΣ", "μάϊοσ"),
        ("①Ⅳ㎝", "1ivcm"),
        ("cafe\u0301 CAFÉ", "café café"),
        ("\u3000", ""),
        ("", ""),
    ],
)
def test_examples(text: str, expected: str) -> None:
    assert normalise_query(text) == expected


@given(TEXT)
@example("\u1e9b\u0323 \u0345\u0300")
def test_idempotent(text: str) -> None:
    once = normalise_query(text)
    assert normalise_query(once) == once
    assert unicodedata.is_normalized("NFKC", once)


def test_idempotent_for_every_character() -> None:
    for code in range(sys.maxunicode + 1):
        once = normalise_query(f"a{chr(code)}")
        assert normalise_query(once) == once, hex(code)


@given(st.lists(st.text(st.sampled_from("aBé红Ｖ裙９ß"), min_size=1), max_size=5), st.data())
def test_spelling_does_not_matter(words: list[str], data: st.DataObject) -> None:
    spelled = [data.draw(st.sampled_from([word, word.upper(), unicodedata.normalize("NFD", word)])) for word in words]
    gaps = [data.draw(SPACE) for _ in range(len(words) + 1)]
    text = gaps[0] + "".join(word + gap for word, gap in zip(spelled, gaps[1:], strict=True))
    assert normalise_query(text) == normalise_query(" ".join(words))


@given(st.lists(TEXT, max_size=4), st.data())
def test_single_spaces_inside_and_none_outside(parts: list[str], data: st.DataObject) -> None:
    found = normalise_query("".join(part + data.draw(SPACE) for part in parts))
    assert found.split() == [word for word in found.split(" ") if word] and "  " not in found
    assert found == found.strip()


def test_the_longest_query_holds_what_the_model_reads() -> None:
    # 64 tokens of a query are read; a Chinese character is one, a Latin word rarely has more than 8 letters.
    assert MAX_QUERY_CHARACTERS >= 64 * 8
