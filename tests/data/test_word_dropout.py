"""`data.word_dropout`: training titles lose words, each by its own draw; nothing else does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbsd.data.samples import Sample
from mbsd.data.text import drop_words
from mbsd.data.views import TextTokens
from tests.data.conftest import MakeBuilder

CLS, SEP = 2, 3


def text(query: int | None, title: int) -> TextTokens:
    """`[CLS] 10 11 … [SEP] 100 101 … [SEP]`; of a title without words nothing."""
    first = [CLS] if query is None else [CLS, *range(10, 10 + query), SEP]
    second = [*range(100, 100 + title), SEP] if title or query is None else []
    types = [0] * len(first) + [int(query is not None)] * len(second)
    return TextTokens(np.array(first + second), np.array(types), 0 if query is None else len(first))


def with_types(text: TextTokens) -> list[tuple[int, int]]:
    return list(zip(text.input_ids.tolist(), text.token_type_ids.tolist(), strict=True))


@given(
    st.integers(0, 2**32), st.one_of(st.none(), st.integers(0, 9)), st.integers(0, 12), st.sampled_from([0.1, 0.5, 1.0])
)
def test_only_words_of_the_title_go_and_one_stays(seed: int, query: int | None, title: int, probability: float) -> None:
    whole = text(query, title)
    left = drop_words(np.random.default_rng(seed), whole, probability)
    title_of = [i for i in whole.input_ids.tolist() if i >= 100]
    kept = [i for i in left.input_ids.tolist() if i >= 100]
    assert kept == sorted(kept) and set(kept) <= set(title_of) and bool(kept) == bool(title_of)
    if probability == 1.0:
        assert len(kept) == min(title, 1)
    rest, rest_left = ([pair for pair in with_types(t) if pair[0] < 100] for t in (whole, left))
    assert rest == rest_left and left.num_query == whole.num_query
    assert set(with_types(left)) <= set(with_types(whole))


def test_as_many_words_go_as_asked_for() -> None:
    whole = text(2, 20)
    lost = [21 + 4 - len(drop_words(np.random.default_rng(seed), whole, 0.3).input_ids) for seed in range(2000)]
    assert np.mean(lost) / 20 == pytest.approx(0.3, abs=0.01)


def test_a_batch_of_training_loses_words_by_epoch_and_position_alone(make_builder: MakeBuilder) -> None:
    samples = [Sample(item, text="red shoe") for item in (0, 1, 4, 5)]
    whole = make_builder().build(samples, np.arange(4), np.zeros(4, dtype=np.int64))
    builder = make_builder(word_dropout=0.5)
    batch = builder.build(samples, np.arange(4), np.zeros(4, dtype=np.int64))
    second = builder.build(samples[2:], np.array([2, 3]), np.array([0, 0]))
    later = builder.build(samples, np.arange(4), np.ones(4, dtype=np.int64))
    assert len(batch.input_ids_N) < len(whole.input_ids_N)
    assert batch.input_ids_N.tolist()[-len(second.input_ids_N) :] == second.input_ids_N.tolist()
    assert later.input_ids_N.tolist() != batch.input_ids_N.tolist()


def test_what_is_scored_keeps_its_words(make_builder: MakeBuilder) -> None:
    samples = [Sample(item) for item in (0, 1, 4, 5)]
    builder = make_builder(train=False, word_dropout=0.9)
    whole = make_builder(train=False).build(samples, np.arange(4), np.zeros(4, dtype=np.int64))
    assert builder.build(samples, np.arange(4), np.zeros(4, dtype=np.int64)).input_ids_N.equal(whole.input_ids_N)
