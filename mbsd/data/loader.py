"""Catalogue → batches: the loaders that training and evaluation iterate over.

Workers are forked. On two busy cores the first batch came after 0.2 s, with forkserver or spawn after 17 s: they import
torch, transformers and the launching script again in every worker. A forked worker touches neither CUDA nor a process
group, DALI builds its threads in the training process after the fork, and a catalogue reads with `pread` and an index
in mapped memory, so that nothing the parent holds open is shared in a harmful way.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from mbsd.batch import Batch
from mbsd.config.batch_plan import BatchPlan, Place
from mbsd.config.deepspeed import BatchSizes
from mbsd.data.batch_builder import BatchBuilder, Prepared
from mbsd.data.damaged import DamagedPictures
from mbsd.data.mismatch import Mismatch
from mbsd.data.mixture import AnyOrder
from mbsd.data.order import micro_batch_positions, sample_at
from mbsd.data.prefetch import prefetched
from mbsd.data.room import Need
from mbsd.data.samples import Sample, Samples
from mbsd.data.transport import Packed, Refused, Sent
from mbsd.data.workers import from_workers, start_worker, start_workers, watch_workers
from mbsd.errors import UserError
from mbsd.parallel.world import World

Int64 = npt.NDArray[np.int64]
EVAL_PREFETCH = 2  # micro-batches that each worker of an evaluation holds ready
HELD_FOR_A_GPU = 2  # micro-batches in shared memory that are being copied


class TrainLoader:
    """Micro-batches without end, in the order of data.order, from any position.

    Iterating starts at the state; the state moves on with each micro-batch that is taken, whatever the workers hold
    ready. To go back, load a state and iterate again.

    Args:
        samples: of the training split.
        builder: with spec.train; its `data` sets how many workers build micro-batches (0: the calling process does) and
            how many each holds ready.
        order: of these samples.
        sizes: samples of a step and of a micro-batch; or of each step, by its position.
        world: of this process. Micro-batches are delivered on its device; to a GPU they travel from page-locked
            memory, ahead of their step.
        damaged: counts damaged pictures; None: they are not counted.

    Attributes:
        need: what it takes of shared memory and open files.

    Raises:
        UserError: there is no sample.
        ValueError: global_batch is no multiple of micro_batch * world.size, or the order is of other samples.
    """

    def __init__(
        self,
        samples: Samples,
        builder: BatchBuilder,
        order: AnyOrder,
        sizes: BatchSizes | BatchPlan,
        world: World,
        damaged: DamagedPictures | None = None,
    ) -> None:
        _require_samples(samples)
        if order.num_samples != len(samples):
            raise ValueError(f"an order of {order.num_samples} samples for {len(samples)}: expected the same number")
        self.order, self.builder = order, builder
        plan = sizes if isinstance(sizes, BatchPlan) else BatchPlan.constant(sizes)
        self._dataset = _TrainMicroBatches(samples, builder, order, plan, world)
        self._device, self._damaged = world.device, damaged
        self._consumed = 0  # micro-batches since the position that was loaded
        # A step's micro-batches are taken together; on a GPU they are copied, and the memory is free again.
        held = HELD_FOR_A_GPU if world.device.type == "cuda" else plan.most_micro_steps + 1
        micro_batch = plan.phases[0][1].micro_batch
        self.need = Need.of(builder, samples, micro_batch, builder.data.prefetch, held)

    def __iter__(self) -> Iterator[Batch]:
        numbers = itertools.count(self._consumed)
        data = self.builder.data
        loader = _data_loader(self._dataset, numbers, data.num_workers, data.prefetch, self._device)
        for batch in _finished(loader, self.builder, self._device, self._damaged):
            self._consumed += 1
            yield batch

    @property
    def micro_steps(self) -> int:
        """Micro-batches of the step that the next one belongs to."""
        return self._place.sizes.accumulation

    @property
    def _place(self) -> Place:
        return self._dataset.plan.place(self._dataset.first, self._consumed)

    def state_dict(self) -> dict[str, int]:
        """`epoch` and `position` in it of the next step's first sample, and what the order was drawn from.

        A step of which only some micro-batches were taken comes again as a whole.
        """
        epoch, position = divmod(self._place.position, self.order.num_samples)
        return {"epoch": epoch, "position": position, **self.order.identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken, at any world size, micro-batch and number of workers.

        Raises:
            UserError: the state is of another order.
        """
        for name, value in self.order.identity().items():
            if state.get(name) != value:
                raise UserError(
                    f"{name}={value}: the checkpoint's data order was made with {name}={state.get(name)}, and what "
                    "comes next would be other samples; restore it, or start another run with run.init_from"
                )
        self._dataset.first = int(state["epoch"]) * self.order.num_samples + int(state["position"])
        self._consumed = 0


def eval_need(samples: Samples, builder: BatchBuilder, micro_batch: int) -> Need:
    """What `eval_batches` takes of shared memory and open files."""
    return Need.of(builder, samples, micro_batch, EVAL_PREFETCH, held=2)


def eval_batches(
    samples: Samples,
    builder: BatchBuilder,
    world: World,
    micro_batch: int,
    limit: int | None = None,
    damaged: DamagedPictures | None = None,
) -> Iterator[Batch]:
    """Every sample exactly once over all ranks, in rising order: rank r takes samples r, r + W, r + 2W and so on.

    A sample's masks depend on its own number, so they are the same at every world size and every time. The last batch
    may be smaller, and a rank may have one batch fewer than another, or none. Batches are on the rank's device.

    Args:
        samples: N of them.
        builder: without spec.train.
        world: of this process; W is its size.
        micro_batch: at most so many samples a batch.
        limit: at most so many samples over all ranks, spread over the whole by a fixed draw; None: all.
        damaged: as for TrainLoader.

    Raises:
        UserError: there is no sample.
    """
    _require_samples(samples)
    chosen = spread(len(samples), limit)[world.rank :: world.size]
    dataset = _EvalMicroBatches(samples, builder, chosen, micro_batch)
    workers = builder.data.num_workers
    loader = _data_loader(dataset, range(len(dataset)), workers, EVAL_PREFETCH, world.device)
    return _finished(loader, builder, world.device, damaged)


def one_batch(builder: BatchBuilder, samples: Sequence[Sample], device: torch.device) -> Batch:
    """A batch of these samples on a device, built here and now: for a few samples to look at or to score.

    Their random numbers, if any, are those of positions 0, 1, 2, … of epoch 0.
    """
    positions = np.arange(len(samples))
    return builder.build(samples, positions, np.zeros_like(positions)).to(device)


def spread(num_samples: int, limit: int | None) -> Int64:
    """At most `limit` of so many samples, rising, spread over the whole by a fixed draw; None: all."""
    chosen = np.arange(num_samples, dtype=np.int64)
    if limit is None or limit >= num_samples:
        return chosen
    # Tables are often sorted by label: the first ones would not represent it. Seed 0: the same ones in every run.
    return np.sort(sample_at(0, num_samples, chosen[:limit]))


class _TrainMicroBatches(Dataset[Prepared]):
    """Micro-batch number n of one rank, counted over all steps from the global position `first`."""

    def __init__(self, samples: Samples, builder: BatchBuilder, order: AnyOrder, plan: BatchPlan, world: World) -> None:
        self.samples, self.builder, self.order = samples, builder, order
        self.mismatch = _mismatch(samples, builder)
        self.plan, self.rank, self.world_size = plan, world.rank, world.size
        self.first = 0
        for _, sizes in plan.phases:
            self._positions(Place(0, 0, sizes))  # raises where the sizes do not fit together

    def _positions(self, place: Place) -> Int64:
        cut = {"global_batch": place.sizes.global_batch, "micro_batch": place.sizes.micro_batch}
        return place.position + micro_batch_positions(0, place.micro_step, self.rank, **cut, world_size=self.world_size)

    def __getitem__(self, number: int) -> Prepared:
        positions = self._positions(self.plan.place(self.first, number))
        epochs, places = self.order.draws_at(positions)
        samples = [self.samples[index] for index in self.order.samples_at(positions).tolist()]
        return self.builder.prepare(self.mismatch.of(samples, places, epochs), places, epochs)


class _EvalMicroBatches(Dataset[Prepared]):
    """Micro-batch number n of one rank's samples."""

    def __init__(self, samples: Samples, builder: BatchBuilder, indices: Int64, micro_batch: int) -> None:
        self.samples, self.builder, self.indices, self.micro_batch = samples, builder, indices, micro_batch
        self.mismatch = _mismatch(samples, builder)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.micro_batch)

    def __getitem__(self, number: int) -> Prepared:
        indices = self.indices[number * self.micro_batch : (number + 1) * self.micro_batch]
        samples, epochs = [self.samples[index] for index in indices.tolist()], np.zeros_like(indices)
        return self.builder.prepare(self.mismatch.of(samples, indices, epochs), indices, epochs)


def _mismatch(samples: Samples, builder: BatchBuilder) -> Mismatch:
    spec = builder.spec
    return Mismatch(samples, builder.source, builder.keys, spec.mismatched, spec.seed, crops=spec.puzzles is not None)


def _finished(
    loader: DataLoader[Any], builder: BatchBuilder, device: torch.device, damaged: DamagedPictures | None
) -> Iterator[Batch]:
    """What workers deliver, finished and on the device: ahead of the step, in a thread, where there is work left."""

    def finish(sent: Prepared | Packed | Refused) -> Batch:
        if isinstance(sent, Refused):
            raise UserError(sent.message)
        prepared = sent.unpack() if isinstance(sent, Packed) else sent
        if damaged is not None:
            damaged.count(prepared.num_read, prepared.damaged)
        return builder.finish(prepared)

    arriving: Iterator[Prepared | Packed | Refused] = start_workers(loader)
    if loader.num_workers:
        watch_workers()
        arriving = from_workers(arriving)
    if device.type == "cpu" and builder.decoder.in_worker:
        return map(finish, arriving)
    return prefetched(arriving, finish, device)


def _data_loader(
    dataset: Dataset[Prepared], numbers: Iterable[int], num_workers: int, prefetch: int, device: torch.device
) -> DataLoader[Any]:
    return DataLoader(
        Sent(dataset) if num_workers else dataset,
        batch_size=None,
        sampler=numbers,
        num_workers=num_workers,
        prefetch_factor=max(1, prefetch) if num_workers else None,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork" if num_workers else None,
        worker_init_fn=start_worker,
        # It draws a seed for its workers, who need none, where it begins: not from the generator that dropout draws
        # from, or a resumed run would draw once more than one that was never stopped.
        generator=torch.Generator(),
    )


def _require_samples(samples: Samples) -> None:
    if len(samples) == 0:
        raise UserError("no samples: this split of the catalogue or table is empty; expected at least one row in it")
