"""Catalogue → batches, first idea: which sample comes when.

The sample at position p of epoch e is a function of (seed, e, p) alone, and so is every random number that is drawn for
it. Nothing is shuffled in memory and nothing depends on the number of ranks or workers: a run that is resumed, or that
is resumed on another number of ranks, sees the same global batches.

Disks and networks like neighbours. So an epoch shuffles blocks of neighbouring samples, and then the samples of as many
blocks as make a window: while the run is inside a window, all its ranks read those blocks and no others. A catalogue
that is not larger than one window is shuffled as a whole.
"""

from __future__ import annotations

import functools
import zlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Uint64 = npt.NDArray[np.uint64]

_ROUNDS = 8  # Four make a Feistel network a pseudo-random permutation (Luby, Rackoff 1988); tiny domains like more.
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_START = 0x5851F42D4C957F2D  # another stream than the permutations'


@dataclass(frozen=True)
class Order:
    """The order of training: which of `num_samples` samples comes at each global position.

    Attributes:
        seed: of the run.
        num_samples: N >= 1; position e * N + p is the p-th of epoch e.
        block: neighbouring samples that stay within one window.
        window: blocks that are mixed with each other.
    """

    seed: int
    num_samples: int
    block: int = 64
    window: int = 512

    def samples_at(self, positions: Int64) -> Int64:
        """The sample at each position: every epoch is a permutation of range(N), drawn from (seed, epoch) alone.

        In epoch e the samples are counted from a drawn one, so that the block which is left over is another one each
        time; whole blocks are permuted, what is left over comes last; then each window is permuted by itself.

        Args:
            positions: int64, any shape, >= 0.

        Returns:
            int64 of the same shape, each in range(N).
        """
        if self.num_samples <= self.block * self.window:
            return sample_at(self.seed, self.num_samples, positions)
        epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), self.num_samples)
        keys = _mix(_mix(epochs.astype(np.uint64) + np.uint64(_GOLDEN)) ^ np.uint64(_hash_int(self.seed)))
        size = self.block * self.window
        windows = places // size
        first = windows * size
        # The last window may be smaller. Each window has a permutation of its own.
        inside = _permuted(
            places - first, np.minimum(size, self.num_samples - first), _mix(keys + windows.astype(np.uint64))
        )
        places = first + inside
        num_blocks = self.num_samples // self.block
        blocks, offsets = np.divmod(places, self.block)
        whole = blocks < num_blocks
        moved = _permuted(np.where(whole, blocks, 0), np.full_like(blocks, num_blocks), _mix(~keys))
        start = (_mix(keys ^ np.uint64(_START)) % np.uint64(self.num_samples)).astype(np.int64)
        return (np.where(whole, moved, blocks) * self.block + offsets + start) % self.num_samples

    def draws_at(self, positions: Int64) -> tuple[Int64, Int64]:
        """What the random numbers of the sample at each position are drawn from (`sample_rng`): epoch and position."""
        epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), self.num_samples)
        return epochs, places

    def epochs_after(self, positions: int) -> dict[str, float]:
        """Nothing: the epochs of the only source are the run's."""
        return {}

    def identity(self) -> dict[str, Any]:
        """As JSON, what must be the same where a run resumes."""
        return asdict(self)


def derived_seed(seed: int, place: int) -> int:
    """The seed of one of several orders of a run, 64 bits; of the first one the run's own."""
    return seed if place == 0 else _hash_int(_hash_int(seed) ^ place)


def sample_at(seed: int, num_samples: int, positions: Int64) -> Int64:
    """The sample at each global position: epoch positions // num_samples is one keyed permutation of the samples.

    A Feistel network over the smallest 4^h >= num_samples, walked along its cycle until it falls into the range (Black,
    Rogaway 2002): no table, so a billion samples cost nothing.

    Args:
        seed: of the run.
        num_samples: N >= 1.
        positions: int64, any shape, >= 0; position e * N + i is the i-th of epoch e.

    Returns:
        int64 of the same shape, each in range(N).
    """
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples}: expected 1 or more")
    epochs, offsets = np.divmod(np.asarray(positions, dtype=np.int64), num_samples)
    keys = _mix(_mix(epochs.astype(np.uint64) + np.uint64(_GOLDEN)) ^ np.uint64(_hash_int(seed)))
    return _permuted(offsets, np.full_like(offsets, num_samples), keys)


def micro_batch_positions(
    step: int, micro_step: int, rank: int, *, global_batch: int, micro_batch: int, world_size: int
) -> Int64:
    """The global positions that a rank reads in one micro-step.

    Global batch t is the positions [t * G, (t + 1) * G): it runs on into the next epoch, nothing is dropped. A
    micro-step takes the next world_size * micro_batch of them, each rank its contiguous slice, so that micro-steps and
    ranks together are exactly the global batch at any world size.

    Returns:
        int64 [micro_batch].

    Raises:
        ValueError: the global batch is no multiple of micro_batch * world_size, or micro_step or rank is out of range.
    """
    num_micro_steps, rest = divmod(global_batch, micro_batch * world_size)
    if rest or num_micro_steps < 1:
        raise ValueError(
            f"global batch {global_batch}: expected a multiple of micro batch {micro_batch} x world size {world_size}"
        )
    if not (0 <= micro_step < num_micro_steps and 0 <= rank < world_size):
        raise ValueError(f"micro_step={micro_step} of {num_micro_steps}, rank={rank} of {world_size}: out of range")
    start = step * global_batch + (micro_step * world_size + rank) * micro_batch
    return np.arange(start, start + micro_batch, dtype=np.int64)


def sample_rng(seed: int, epoch: int, position: int, purpose: str | int) -> np.random.Generator:
    """The random numbers of one sample: a counter-based stream (Philox) that depends on the four arguments alone.

    Args:
        seed: of the run.
        epoch: pass over the samples.
        position: of the sample in the order of that epoch.
        purpose: what is drawn ("text", "words", "patches", "crop"), so that one use more does not move the others.
    """
    tag = zlib.crc32(purpose.encode()) if isinstance(purpose, str) else _hash_int(purpose)
    # The stream counts up the first two words of the counter; the last two are ours.
    counter = np.array([0, 0, epoch, position], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array([_hash_int(seed), tag], dtype=np.uint64), counter=counter))


def _permuted(places: Int64, sizes: Int64, keys: Uint64) -> Int64:
    """Each place under the permutation of range(size) that its key names; the arrays have one shape."""
    permuted = np.empty_like(places)
    for size in np.unique(sizes).tolist():
        chosen = sizes == size
        half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        some_keys = keys[chosen]
        values = _feistel(places[chosen].astype(np.uint64), some_keys, half_bits)
        outside = values >= size
        while outside.any():
            values[outside] = _feistel(values[outside], some_keys[outside], half_bits)
            outside = values >= size
        permuted[chosen] = values.astype(np.int64)
    return permuted


def _feistel(values: Uint64, keys: Uint64, half_bits: int) -> Uint64:
    """A keyed permutation of range(4 ** half_bits), element by element."""
    shift, low = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & low
    for number in range(_ROUNDS):
        round_key = np.uint64((number + 1) * _GOLDEN & _MASK)
        left, right = right, left ^ (_mix((keys ^ round_key) + right) & low)
    return (left << shift) | right


def _mix(values: Uint64) -> Uint64:
    """splitmix64's finaliser: every bit of the input reaches every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.lru_cache(maxsize=1024)
def _hash_int(value: int) -> int:
    """64 well-mixed bits of any integer, a negative one too."""
    return int(_mix(np.array([value & _MASK], dtype=np.uint64) + np.uint64(_GOLDEN))[0])
