"""Which spellings are one word, for masked titles and for withheld words alike."""

from __future__ import annotations

import pytest

from mbsd.catalog.derived.words import Withheld
from mbsd.catalog.word_forms import all_forms_of, forms_of, parts_of


@pytest.mark.parametrize(
    "spellings",
    [
        ("Men", "men's", "mens", "MAN", "man"),
        ("women", "Womens", "woman", "women’s"),
        ("Accessories", "accessory"),
        ("Scarves", "scarf"),
        ("Dresses", "dress", "ＤＲＥＳＳ"),
        ("T-Shirts", "tshirt", "t_shirt"),
        ("feet", "foot"),
        ("लाल", "लाल,"),
    ],
)
def test_spellings_of_one_word_have_a_form_in_common(spellings: tuple[str, ...]) -> None:
    first, *others = spellings
    for other in others:
        assert forms_of(first) & forms_of(other), other
        assert not Withheld([first]).allowed(other), other


def test_words_that_are_not_one() -> None:
    for one, other in (("man", "mandarin"), ("scarf", "scar"), ("shirt", "skirt"), ("ts", "t"), ("लाल", "ला")):
        assert not forms_of(one) & forms_of(other), (one, other)
    assert forms_of("t") == {"t"} and forms_of("-'") == frozenset()
    assert parts_of("dk.grey_2") == ("dk", "grey", "2") and {"dk", "grey", "dkgrey2"} <= all_forms_of("dk.grey2")
