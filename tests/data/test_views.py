from __future__ import annotations

import itertools

import numpy as np
import pytest

from mbsd.data.views import TextTokens, pack

CLS, SEP = 101, 102
PATCHES = 3
COMBINATIONS = [c for n in (1, 2, 3) for c in itertools.permutations(("full", "text", "image"), n)]

Token = tuple[object, ...]


def random_sample(rng: np.random.Generator) -> tuple[TextTokens, list[int] | None, list[int], bool]:
    query = None if rng.random() < 0.3 else rng.integers(200, 300, rng.integers(0, 4)).tolist()
    title = [] if rng.random() < 0.3 else rng.integers(300, 400, rng.integers(1, 6)).tolist()
    if query is None:
        ids = [CLS, *title, SEP]
        types, num_query = [0] * len(ids), 0
    else:
        first, second = [CLS, *query, SEP], [*title, SEP] if title else []
        ids, types, num_query = first + second, [0] * len(first) + [1] * len(second), len(first)
    return TextTokens(np.array(ids), np.array(types), num_query), query, title, bool(rng.random() < 0.7)


def naive(view: str, query: list[int] | None, title: list[int], image: int | None) -> list[Token]:
    """The sequence of one view as SPEC 1 says it, token by token: ("word", id, position, type) or ("patch", i, r)."""
    words: list[tuple[int, int]] = [(CLS, 0)]
    if query is None:
        words += [(word, 0) for word in title if view != "image"] + [(SEP, 0)]
    else:
        words += [(word, 0) for word in query] + [(SEP, 0)]
        if title and view != "image":
            words += [(word, 1) for word in title] + [(SEP, 1)]
    tokens: list[Token] = [("word", word, position, type_) for position, (word, type_) in enumerate(words)]
    if image is not None and view != "text":
        tokens += [("patch", image, r) for r in range(PATCHES)]
    return tokens


@pytest.mark.parametrize("names", COMBINATIONS)
def test_packing_is_the_padded_construction_without_the_padding(names: tuple[str, ...]) -> None:
    rng = np.random.default_rng(len(names) + ord(names[0][0]))
    for batch in (1, 2, 7, 7, 7):
        samples = [random_sample(rng) for _ in range(batch)]
        texts, has_image = [s[0] for s in samples], [s[3] for s in samples]
        ids, positions, types, views = pack(texts, has_image, names, PATCHES)
        numbers = iter(range(batch))
        images = [next(numbers) if image else None for image in has_image]
        streams: list[Token] = [
            ("word", *row) for row in zip(ids.tolist(), positions.tolist(), types.tolist(), strict=True)
        ]
        streams += [("patch", i, r) for i in range(sum(has_image)) for r in range(PATCHES)]
        packed = [streams[row] for row in views.source_T.tolist()]
        expected = [
            naive(view, query, title, image)
            for view in names
            for (_, query, title, _), image in zip(samples, images, strict=True)
        ]
        assert views.names == names
        assert views.lengths == tuple(len(sequence) for sequence in expected)
        assert views.cu_seqlens.tolist() == [0, *itertools.accumulate(views.lengths)]
        assert packed == [token for sequence in expected for token in sequence]
        assert str(views.cu_seqlens.dtype) == "torch.int32" and str(views.source_T.dtype) == "torch.int64"


def test_each_text_is_embedded_once() -> None:
    text = TextTokens(np.array([CLS, 5, SEP, 6, 7, SEP]), np.array([0, 0, 0, 1, 1, 1]), 3)
    ids, *_ = pack([text, text], [True, False], ("full", "text", "image"), PATCHES)
    assert len(ids) == 12


def test_unknown_and_missing_views_are_refused() -> None:
    text = TextTokens(np.array([CLS, SEP]), np.array([0, 0]), 0)
    for names in ((), ("ful",)):
        with pytest.raises(ValueError, match="expected one or more"):
            pack([text], [True], names, PATCHES)
