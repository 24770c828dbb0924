"""Catalogue → batches: what the loaders need of /dev/shm and of open files, compared with what there is.

Where a worker finds no room for a batch, torch drops it and the run waits for ever: Docker gives a container 64 MB.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mbsd.catalog.reader import Catalog
from mbsd.catalog.several import Catalogs
from mbsd.data.batch_builder import BatchBuilder
from mbsd.data.samples import Samples
from mbsd.errors import UserError

SHARED_MEMORY = Path("/dev/shm")
PAGE = 4096
INT64 = 8  # bytes
ALIGNED = 64  # bytes; tensors in shared memory begin at a multiple
TENSORS, OF_PUZZLES = 16, 8  # of a batch, at most
OPEN_FILES_A_WORKER = 4  # of the training process: pipes to and from it
OPEN_FILES = 48  # besides: shards, checkpoints, curves, connections to other ranks


@dataclass(frozen=True)
class Need:
    """What one loader of one rank holds at once.

    Attributes:
        workers: processes.
        batches: micro-batches that lie in shared memory at once, each an open file.
        bytes_each: of one of them, at most.
    """

    workers: int
    batches: int
    bytes_each: int

    @classmethod
    def of(cls, builder: BatchBuilder, samples: Samples, micro_batch: int, prefetch: int, held: int) -> Need:
        """Of a loader over these samples.

        Args:
            micro_batch: samples.
            prefetch: micro-batches that each worker holds ready.
            held: those that the training process has taken and still reads.
        """
        workers = builder.data.num_workers
        if workers == 0 or len(samples) == 0:
            return cls(0, 0, 0)
        items = micro_batch * (2 if samples[0].other is not None else 1)
        return cls(workers, workers * prefetch + held, largest_batch(builder, items))

    @property
    def size(self) -> int:
        """Bytes of shared memory."""
        return self.batches * self.bytes_each


def largest_batch(builder: BatchBuilder, items: int) -> int:
    """Bytes of the tensors of so many items, each with a picture and as many tokens as it may have."""
    spec, data = builder.spec, builder.data
    words, patches = items * (data.max_text_tokens + 2), items * (spec.patches_per_image + int(spec.image_cls))
    numbers = 3 * words + len(spec.views) * (words + patches + items) + 3 * items
    if spec.masking is not None:
        numbers += 2 * words + 3 * patches
    tensors, of_item = TENSORS, 1
    if spec.puzzles is not None:
        tensors, of_item = TENSORS + OF_PUZZLES, 2  # with the picture that lends a crop
        numbers += items * (OF_PUZZLES + spec.puzzles.grey + spec.puzzles.blank)
    has_pictures = not isinstance(builder.source, Catalog | Catalogs) or builder.source.meta["with_image"] > 0
    pictures = 0
    if spec.views != ("text",) and builder.decoder.in_worker and has_pictures:
        pictures = items * of_item * 3 * data.image_size**2
    return -(-(pictures + INT64 * (numbers + tensors * builder.bucket) + ALIGNED * tensors) // PAGE) * PAGE


def require_room(needs: Iterable[Need], ranks_here: int = 1) -> None:
    """Check that the loaders of a rank, and of the others on this host, have the shared memory and files they need.

    The limit of open files is raised to what is needed where the system lets it be.

    Args:
        needs: of all loaders that are open at once.
        ranks_here: on this host, each with the same needs.

    Raises:
        UserError: there is less.
    """
    needs = list(needs)
    if not any(need.workers for need in needs):
        return
    size, free = ranks_here * sum(need.size for need in needs), free_shared_memory()
    if free is not None and size > free:
        most = max(needs, key=lambda need: need.size)
        among = f", for {ranks_here} ranks" if ranks_here > 1 else ""
        raise UserError(
            f"{SHARED_MEMORY}: has {free / 1e6:.0f} MB free and the loaders need up to {size / 1e6:.0f} MB{among} "
            f"({sum(need.batches for need in needs)} micro-batches of up to {most.bytes_each / 1e6:.1f} MB a rank); "
            "enlarge it (docker run --shm-size), or lower data.prefetch, data.num_workers or the micro-batch"
        )
    _require_files(sum(OPEN_FILES_A_WORKER * need.workers + need.batches for need in needs))


def free_shared_memory() -> int | None:
    """Bytes free in /dev/shm; None: the system has none."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def no_room(why: str) -> str:
    """The message where a worker cannot hand a batch over, in spite of the check."""
    free = free_shared_memory()
    left = f"{SHARED_MEMORY} has {free / 1e6:.0f} MB left and " if free is not None else ""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"a loader worker finds no room for a batch ({why}): {left}a process may open {files} files; enlarge what is "
        "short (docker run --shm-size, ulimit -n), or lower data.prefetch or data.num_workers"
    )


def _require_files(more: int) -> None:
    needed = len(os.listdir("/proc/self/fd")) + more + OPEN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise UserError(
            f"a process may open {hard} files here (ulimit -n) and each rank needs up to {needed}; raise the limit, or "
            "lower data.num_workers or data.prefetch"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
