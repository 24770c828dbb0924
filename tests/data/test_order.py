from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbsd.data.order import Order, micro_batch_positions, sample_at, sample_rng


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(-(2**63), 2**64), num_samples=st.integers(1, 700), epoch=st.integers(0, 10**6))
def test_an_epoch_is_a_permutation(seed: int, num_samples: int, epoch: int) -> None:
    positions = np.arange(epoch * num_samples, (epoch + 1) * num_samples)
    assert np.array_equal(np.sort(sample_at(seed, num_samples, positions)), np.arange(num_samples))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**64),
    num_samples=st.integers(1, 700),
    epoch=st.integers(0, 10**6),
    block=st.integers(1, 20),
    window=st.integers(1, 12),
)
def test_an_epoch_in_windows_is_a_permutation_that_reads_few_blocks_at_a_time(
    seed: int, num_samples: int, epoch: int, block: int, window: int
) -> None:
    order = Order(seed, num_samples, block, window)
    samples = order.samples_at(np.arange(epoch * num_samples, (epoch + 1) * num_samples))
    assert np.array_equal(np.sort(samples), np.arange(num_samples))
    size = block * window
    for start in range(0, num_samples, size):
        part = np.sort(samples[start : start + size])
        if num_samples > size:
            # Runs of neighbours: a block each, one of them cut in two by the end of the catalogue, and the rest.
            assert np.count_nonzero(np.diff(part) > 1) + 1 <= window + 2


def test_windows_look_shuffled_and_no_block_is_always_left_over() -> None:
    order, n = Order(7, 1030, 10, 8), 1030
    epochs = order.samples_at(np.arange(400 * n)).reshape(400, n)
    assert abs(np.corrcoef(epochs[0], np.arange(n))[0, 1]) < 0.15
    assert abs(np.corrcoef(epochs[0], epochs[1])[0, 1]) < 0.15
    inside = np.argsort(epochs[:, :80], axis=1).ravel()  # where in its window each sample of a sorted one stands
    assert abs(np.corrcoef(inside, np.tile(np.arange(80), 400))[0, 1]) < 0.03
    # Every sample is in the first tenth of an epoch equally often: 40 of 400 times.
    counts = np.bincount(epochs[:, :103].ravel(), minlength=n)
    assert counts.min() > 10 and counts.max() < 80
    assert abs(counts.mean() - 40) < 1e-9


def test_a_sample_depends_on_its_position_alone() -> None:
    positions = np.arange(0, 3000)
    whole = sample_at(5, 1001, positions)
    one_by_one = [int(sample_at(5, 1001, positions[i : i + 1])[0]) for i in range(0, 3000, 37)]
    assert whole[::37].tolist() == one_by_one
    assert np.array_equal(sample_at(5, 1001, positions.reshape(3, 1000)), whole.reshape(3, 1000))


def test_epochs_and_seeds_differ_and_look_shuffled() -> None:
    n = 10_000
    first, second = np.split(sample_at(1, n, np.arange(2 * n)), 2)
    other = sample_at(2, n, np.arange(n))
    # Of two random permutations about one place agrees; a rank correlation has deviation 1 / sqrt(n) = 0.01.
    for a, b in ((first, second), (first, other), (first, np.arange(n)), (first[1:], first[:-1])):
        assert (a == b).sum() < 10
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.05


def test_every_place_of_a_small_range_is_reached_equally_often() -> None:
    n, epochs = 6, 6000
    table = sample_at(9, n, np.arange(n * epochs)).reshape(epochs, n)
    counts = np.stack([np.bincount(table[:, place], minlength=n) for place in range(n)])
    assert np.abs(counts - epochs / n).max() < 5 * np.sqrt(epochs / n)


def test_a_billion_samples_cost_nothing() -> None:
    order = Order(0, 10**9)
    samples = order.samples_at(np.arange(10**9 - 500, 10**9 + 500))
    assert samples.min() >= 0 and samples.max() < 10**9
    assert len(set(samples[:500].tolist())) == 500


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("micro_batch", [1, 2, 6])
def test_global_batches_are_the_same_at_every_world_size(world_size: int, micro_batch: int) -> None:
    global_batch, n = 72, 50  # a global batch is longer than an epoch
    for step in range(4):
        read = [
            micro_batch_positions(
                step, m, rank, global_batch=global_batch, micro_batch=micro_batch, world_size=world_size
            )
            for m in range(global_batch // (micro_batch * world_size))
            for rank in range(world_size)
        ]
        assert np.concatenate(read).tolist() == list(range(step * global_batch, (step + 1) * global_batch))
    # Three epochs in 150 positions: nothing is dropped where they wrap.
    assert np.bincount(sample_at(0, n, np.arange(3 * n))).tolist() == [3] * n


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of micro batch 4"):
        micro_batch_positions(0, 0, 0, global_batch=10, micro_batch=4, world_size=1)
    with pytest.raises(ValueError, match="out of range"):
        micro_batch_positions(0, 2, 0, global_batch=8, micro_batch=4, world_size=1)


def test_random_streams_are_repeatable_and_apart() -> None:
    keys = [(0, 0, 0, "text"), (0, 0, 0, "crop"), (0, 0, 1, "text"), (0, 1, 0, "text"), (1, 0, 0, "text"), (0, 0, 0, 7)]
    streams = [sample_rng(*key).random(200) for key in keys]
    for key, stream in zip(keys, streams, strict=True):
        assert np.array_equal(stream, sample_rng(*key).random(200))
    assert len(np.unique(np.concatenate(streams))) == 200 * len(keys)
    neighbours = np.array([sample_rng(0, 0, position, "crop").random() for position in range(4000)])
    assert abs(neighbours.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(neighbours[1:], neighbours[:-1])[0, 1]) < 0.08
