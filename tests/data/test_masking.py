from __future__ import annotations

import numpy as np
import pytest

from mbsd.data.masking import Vocabulary, mask_patches, mask_text

VOCAB, MASK, SPECIALS = 50, 4, (0, 1, 2, 3, 4)
WORDS = Vocabulary(VOCAB, MASK, SPECIALS)


def test_words_are_masked_at_bert_s_rates_and_specials_never() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCAB, 200_000)
    before = ids.copy()
    special = np.isin(ids, SPECIALS)
    corrupted, positions, labels = mask_text(rng, ids, special, WORDS, 0.15)
    assert np.array_equal(ids, before), "the input is left alone"
    assert not special[positions].any()
    assert np.array_equal(labels, before[positions])
    untouched = np.setdiff1d(np.arange(len(ids)), positions)
    assert np.array_equal(corrupted[untouched], before[untouched])
    # Deviations: sqrt(0.15 * 0.85 / 180,000) = 0.0008 and sqrt(0.1 * 0.9 / 27,000) = 0.0018.
    assert len(positions) / (~special).sum() == pytest.approx(0.15, abs=0.005)
    now = corrupted[positions]
    kept, masked = now == labels, now == MASK
    words = VOCAB - len(SPECIALS)
    assert masked.mean() == pytest.approx(0.8, abs=0.01)
    assert kept.mean() == pytest.approx(0.1 + 0.1 / words, abs=0.01)
    drawn = now[~kept & ~masked]
    counts = np.bincount(drawn, minlength=VOCAB)
    assert counts[list(SPECIALS)].sum() == 0
    assert counts[len(SPECIALS) :].min() > 0.6 * len(drawn) / words
    assert counts.max() < 1.4 * len(drawn) / words


def test_random_words_step_over_special_ids_wherever_they_stand() -> None:
    specials = (0, 7, 8, 49, 60)
    ids = np.full(30_000, 20)
    corrupted, *_ = mask_text(
        np.random.default_rng(1), ids, np.zeros(30_000, bool), Vocabulary(VOCAB, 8, specials), 1.0
    )
    assert set(corrupted.tolist()) == set(range(VOCAB)) - {0, 7, 49}  # 8 is [MASK], 60 no word at all


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0), (1.0, 1)])
def test_probability_zero_and_one(probability: float, share: int) -> None:
    ids = np.arange(5, 45)
    _, positions, _ = mask_text(np.random.default_rng(0), ids, ids % 4 == 0, WORDS, probability)
    assert positions.tolist() == [i for i in range(40) if ids[i] % 4] * share


@pytest.mark.parametrize(("patches", "probability", "expected"), [(49, 0.5, 24), (4, 0.5, 2), (50, 0.3, 15), (1, 1, 1)])
def test_exactly_the_share_of_the_patches_is_masked(patches: int, probability: float, expected: int) -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros(patches)
    for _ in range(400):
        positions, sources = mask_patches(rng, patches, probability, "replace")
        assert len(set(positions.tolist())) == len(positions) == expected
        assert np.array_equal(positions, np.sort(positions))
        assert (sources == patches).all()
        counts[positions] += 1
    assert np.abs(counts - 400 * expected / patches).max() <= 5 * np.sqrt(400 / 4)


def test_bert_corruption_of_patches() -> None:
    rng = np.random.default_rng(0)
    drawn = [mask_patches(rng, 49, 0.5, "bert") for _ in range(800)]
    positions, sources = (np.concatenate(part) for part in zip(*drawn, strict=True))
    kept, masked = sources == positions, sources == 49
    assert masked.mean() == pytest.approx(0.8, abs=0.012)
    assert kept.mean() == pytest.approx(0.1, abs=0.01)
    swapped = sources[~kept & ~masked]
    assert np.unique(swapped).tolist() == list(range(49))
    alone = [mask_patches(rng, 1, 1.0, "bert")[1].item() for _ in range(200)]
    assert set(alone) == {0, 1}  # the only patch of an image can only be exchanged for itself
