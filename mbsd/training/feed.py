"""What a run is fed with: micro-batches to train on, and held-out ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mbsd.batch import Batch
from mbsd.catalog.remote import cache_warning
from mbsd.catalog.several import Catalogs
from mbsd.config.batch_plan import BatchPlan
from mbsd.data.damaged import DamagedPictures
from mbsd.data.inputs import Builders, Inputs
from mbsd.data.loader import TrainLoader, eval_batches, eval_need
from mbsd.data.mixture import order_of
from mbsd.data.room import require_room
from mbsd.data.samples import Samples
from mbsd.data.spec import Needs
from mbsd.io.console import say
from mbsd.model.config import BackboneConfig
from mbsd.stages.showcase import HeldOut
from mbsd.training.determinism import repeatable_decoder
from mbsd.training.run import Run


@dataclass(frozen=True)
class Feed:
    """The two streams of a run.

    Attributes:
        loader: of the training split, from any position.
        damaged: counts damaged pictures of both streams.
    """

    run: Run
    loader: TrainLoader
    held_out: HeldOut
    damaged: DamagedPictures

    @classmethod
    def of(
        cls,
        run: Run,
        inputs: Inputs,
        needs: Needs,
        samples: tuple[Samples, Samples],
        model: BackboneConfig,
        batches: BatchPlan,
    ) -> Feed:
        """The streams over the training and the held-out samples; nothing is read before the first step.

        Raises:
            UserError: a view that the model does not read, a decoder that run.deterministic excludes, a catalogue
                without training samples, too little shared memory or too few open files.
        """
        settings = run.config.run
        data = repeatable_decoder(run.config.data, settings, run.world.device)
        if run.world.is_first:
            for one in inputs.catalog.members if isinstance(inputs.catalog, Catalogs) else (inputs.catalog,):
                if warning := cache_warning(one, data.shuffle_block, data.shuffle_window):
                    say(warning)
        train, held_out = samples
        builders = Builders(inputs.catalog, inputs.tokenizer, data, model, run.sizes.micro_batch)
        builder = builders.build(needs.views, needs.targets, run.world, train=True, seed=settings.seed)
        validation = builders.build(needs.held_out_views, needs.held_out_targets, run.world, seed=settings.seed)
        damaged = DamagedPictures(data.max_corrupt, say)
        train, order = order_of(train, inputs.catalog, data, settings.seed)
        loader = TrainLoader(train, builder, order, batches, run.world, damaged)
        shown = HeldOut(held_out, validation, inputs.catalog, settings.validate_samples, run.world.device)
        require_room([loader.need, eval_need(held_out, validation, run.sizes.micro_batch)], run.world.local_size)
        return cls(run, loader, shown, damaged)

    @property
    def keys(self) -> str | None:
        """Digest of the items' identity keys; None where the stage reads none."""
        keys = self.loader.builder.keys
        return keys.digest if keys is not None else None

    def steps(self) -> Iterator[list[Batch]]:
        """The micro-batches of one step after the other, on the rank's device, from where the loader stands."""
        micro_batches = iter(self.loader)
        while True:
            yield [next(micro_batches) for _ in range(self.loader.micro_steps)]

    def validation_batches(self) -> Iterator[Batch]:
        """This rank's held-out batches, on its device; the watchdog sees each of them."""
        held_out, micro_batch = self.held_out, self.run.sizes.micro_batch
        batches = eval_batches(
            held_out.samples, held_out.builder, self.run.world, micro_batch, held_out.limit, self.damaged
        )
        return self.run.watchdog.over(batches)
