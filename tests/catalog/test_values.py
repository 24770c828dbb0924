"""One conversion of values to text: what is missing, an integer, or refused; one by one and by the array."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbsd.catalog.values import InexactError, NotTextError, as_text, text_array

QUICK = settings(max_examples=60, deadline=None, database=None, derandomize=True)
NARROW = {pa.float16(): 11, pa.float32(): 24, pa.float64(): 53}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None), (float("nan"), None), (3.0, "3"), (-0.0, "0"), (3.5, "3.5"), (1e-05, "1e-05"),
        (2.0**53 - 1, "9007199254740991"), (10**30, "1" + "0" * 30), (True, "true"), ("1.0", "1.0"), ("nan", "nan"),
        (Decimal("3.00"), "3"), (Decimal("3.50"), "3.5"), (Decimal("0.00"), "0"), (Decimal("1E+3"), "1000"),
        (b"red", "red"),
    ],
)  # fmt: skip
def test_text(value: Any, text: str | None) -> None:
    assert as_text(value) == text


@pytest.mark.parametrize("value", [2.0**53, -1e21, float("inf")])
def test_a_float_that_has_lost_digits(value: float) -> None:
    with pytest.raises(InexactError, match=r"at or above 2\*\*53, which has lost its last digits"):
        as_text(value)
    with pytest.raises(InexactError) as error:
        text_array(pa.array([1.0, None, value]))
    assert error.value.index == 2


@pytest.mark.parametrize(("kind", "bits"), NARROW.items())
def test_each_width_has_its_own_limit(kind: Any, bits: int) -> None:
    assert text_array(pa.array([2.0**bits - 1, 0.5, None], kind)).to_pylist() == [
        str(2**bits - 1).encode(),
        b"0.5",
        None,
    ]
    with pytest.raises(InexactError, match=rf"2\*\*{bits}"):
        text_array(pa.array([2.0**bits], kind))


@pytest.mark.parametrize("value", [[1], {"a": 1}, b"\xff", "\ud800"])
def test_what_has_no_text(value: Any) -> None:
    with pytest.raises(NotTextError):
        as_text(value)


def test_a_short_float_has_the_digits_that_were_written() -> None:
    assert text_array(pa.array([0.1, 2.25, None], pa.float32())).to_pylist() == [b"0.1", b"2.25", None]


ARRAYS = {
    pa.float64(): st.floats(-(2.0**53) + 1, 2.0**53 - 1) | st.just(float("nan")),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.string(): st.text(st.characters(codec="utf-8")),
    pa.bool_(): st.booleans(),
    pa.decimal128(9, 2): st.decimals(-999, 999, places=2),
}


@given(
    st.sampled_from(list(ARRAYS)).flatmap(
        lambda kind: st.lists(st.none() | ARRAYS[kind]).map(lambda values: pa.array(values, kind))
    )
)
@QUICK
def test_an_array_is_read_as_its_values(array: Any) -> None:
    expected = [as_text(value) for value in array.to_pylist()]
    assert text_array(array).to_pylist() == [text if text is None else text.encode() for text in expected]
    assert text_array(array.dictionary_encode()).equals(text_array(array))
