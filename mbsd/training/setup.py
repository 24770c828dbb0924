"""The composition root: what `launchers/` and `mbsd …` run, put together from the rooms of the house."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from mbsd.batch import VIEW_NAMES
from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Kind, Table
from mbsd.checkpoint.manager import CheckpointManager
from mbsd.checkpoint.resume import find_elsewhere, take_over
from mbsd.checkpoint.storage import probe
from mbsd.config.deepspeed import DeepSpeedConfig
from mbsd.config.parse import to_yaml
from mbsd.config.run import BaseConfig, PretrainConfig
from mbsd.config.run_files import DONE
from mbsd.config.stages import MaskingConfig, SdmiConfig
from mbsd.data.damaged import DamagedPictures
from mbsd.data.inputs import batches_of, make_builder, open_inputs, split_samples
from mbsd.data.loader import Samples, TrainLoader
from mbsd.data.order import Order
from mbsd.data.text import words_digest
from mbsd.io.console import quiet_libraries, say
from mbsd.metrics.throughput import Throughput
from mbsd.metrics.writer import MetricsWriter
from mbsd.model.config import MbsdConfig
from mbsd.model.execution import prepare_execution
from mbsd.model.heads import MbsdForMaskedModelling, MbsdForMatching
from mbsd.model.load import start_model
from mbsd.parallel.world import World, on_rank_zero, process_group, same_on_every_rank
from mbsd.stages.showcase import Showcase
from mbsd.stages.stage import MaskedStep, MatchingStep, Validation
from mbsd.training.divergence import DivergedError
from mbsd.training.early_stopping import EarlyStopping
from mbsd.training.engine import build_engine, seed_everything
from mbsd.training.preempt import stop_requests
from mbsd.training.profile import profiled
from mbsd.training.run_folder import packages, run_settings, say_how_it_ended, say_start, write_run_folder
from mbsd.training.start import start_tokenizer, start_weights
from mbsd.training.trainer import train
from mbsd.training.watchdog import Watchdog


def pretrain(config: PretrainConfig, ds_config: DeepSpeedConfig) -> None:
    """Both stages of pre-training (`launchers/pretrain.py`)."""
    if config.stage == "masked":
        training(
            config,
            ds_config,
            views=("full",),
            table_kind=None,
            masking=config.masking or MaskingConfig(),
            make_step=lambda tokenizer, _: MaskedStep(
                start_model(MbsdForMaskedModelling, config, len(tokenizer), start_weights(config))
            ),
        )
    else:
        sdmi = config.sdmi or SdmiConfig()
        training(
            config,
            ds_config,
            views=MatchingStep.views(sdmi),
            validation_views=VIEW_NAMES,
            table_kind="pairs",
            masking=None,
            make_step=lambda tokenizer, _: MatchingStep(
                start_model(MbsdForMatching, config, len(tokenizer), start_weights(config)), sdmi
            ),
        )


def training(
    config: BaseConfig,
    ds_config: DeepSpeedConfig,
    *,
    views: tuple[str, ...],
    validation_views: tuple[str, ...] | None = None,
    table_kind: Kind | None,
    masking: MaskingConfig | None,
    make_step: Callable[[PreTrainedTokenizerBase, Table | None], Any],
    read: Callable[[Catalog, Table | None, str], Samples] = split_samples,
    label_dtype: torch.dtype = torch.float32,
    selection: EarlyStopping | None = None,
) -> None:
    """Any training run: data, weights, engine, loop. Run again, it goes on where it was; finished, it says so.

    Args:
        make_step: (tokenizer, table) -> the model and its objective; raises UserError where they do not fit.
        read: (catalogue, table, split) -> its samples.
        selection: keeps the best checkpoint, and may end the run early.
    """
    quiet_libraries()
    run, folder = config.run, Path(config.run.dir)
    patience = max(600.0, 2 * run.timeout)  # the watchdog of a rank that hangs says more than those that wait for it
    with (
        process_group(patience) as world,
        Watchdog(folder, world.rank, run.timeout) as watchdog,
        stop_requests(patience) as requests,
    ):
        if on_rank_zero((folder / DONE).exists):
            _say(world, f"{folder}: finished already ({DONE} is there); nothing to do")
            return
        with same_on_every_rank():
            sizes = ds_config.sizes(world.size)
            catalog, table = open_inputs(config.data, table_kind)
            samples, held_out = read(catalog, table, "train"), read(catalog, table, "validation")
            total_steps = run.max_steps or max(1, math.ceil((run.epochs or 0) * len(samples) / sizes.global_batch))
            resolved = ds_config.resolved(world.size, total_steps)
        local = run.node_local_checkpoints
        storage = probe(Path(local or folder / "checkpoints"), world, node_local=local is not None)

        watchdog.beat("starting: tokenizer")
        tokenizer = start_tokenizer(config, catalog, folder)
        watchdog.beat("starting: model and engine")
        with same_on_every_rank():
            step = make_step(tokenizer, table)
            model: Any = step.model
            prepare_execution(model, config)
            build = partial(make_builder, config.data, catalog, tokenizer, model.config, masking=masking, seed=run.seed)
            builder = build(views, world, sizes.micro_batch, train=True, label_dtype=label_dtype)
            validation_builder = build(
                validation_views or views, world, sizes.micro_batch, train=False, label_dtype=label_dtype
            )
        seed_everything(run.seed, world.rank)
        engine = build_engine(step, resolved)

        corrupt = DamagedPictures(config.data.max_corrupt, say)
        loader = TrainLoader(
            samples,
            builder,
            order=Order(run.seed, len(samples), config.data.shuffle_block, config.data.shuffle_window),
            global_batch=sizes.global_batch,
            micro_batch=sizes.micro_batch,
            rank=world.rank,
            world_size=world.size,
            num_workers=config.data.num_workers,
            prefetch=config.data.prefetch,
            device=world.device,
            corrupt=corrupt,
        )

        def validate() -> Validation:
            batches = batches_of(
                held_out, validation_builder, config.data, world, sizes.micro_batch, run.validate_samples, corrupt
            )
            held: Validation = step.validate(watchdog.over(batches), world.device)
            return held

        showcase = Showcase(held_out, validation_builder, catalog, run.validate_samples, world.device)

        identity = {
            "catalogue": catalog.fingerprint,
            "table": table.fingerprint if table is not None else None,
            "samples": len(samples),
            "run.seed": run.seed,
            "train_batch_size": sizes.global_batch,
            "views": list(views),
            "model": _shape(model.config),
            "vocabulary": words_digest(tokenizer),
            "optimizer": resolved["optimizer"]["type"],
        }
        watchdog.beat("starting: checkpoint")
        tell = partial(_say, world)
        token, found = take_over(folder, storage, world, identity, tell)
        own = found is not None  # another run's best checkpoint is none of this run's
        if found is None and run.resume != "auto":
            found = find_elsewhere(run.resume, world, identity, tell)
        checkpoints = CheckpointManager(
            folder,
            world,
            storage,
            engine,
            model,
            tokenizer,
            token=token,
            facts={"identity": identity, "packages": packages()},
            texts={"config.yaml": to_yaml(config), "ds_config.json": json.dumps(resolved, indent=1) + "\n"},
            keep_last=run.keep_last,
            keep_every=run.keep_every,
            say=say,
        )
        start_step = 0
        if found is not None:
            facts = checkpoints.load(found)
            start_step = facts["step"]
            with same_on_every_rank():
                loader.load_state_dict(facts["loader"])
                if selection is not None and facts.get("selection") is not None and own:
                    selection.load_state_dict(facts["selection"])
        write_run_folder(config, resolved, folder, world)
        origin = f"weights of {run.init_from or config.model.backbone or 'scratch'}"
        if found is not None:
            other = found.facts["world_size"] != world.size
            origin = f"resuming {found.folder}" + (f" of {found.facts['world_size']} ranks" if other else "")
        if world.is_first:
            say_start(
                folder,
                config,
                resolved,
                sizes,
                model,
                origin=origin,
                steps=(start_step + 1, total_steps),
                samples=(len(samples), len(held_out)),
                world_size=world.size,
                storage=str(storage),
            )
        with (
            MetricsWriter(
                folder,
                start_step=start_step,
                total_steps=total_steps,
                enabled=world.is_first,
                settings=run_settings(config, resolved),
            ) as writer,
            profiled(run.profile, folder, world.rank) as traced,
        ):
            try:
                stop = train(
                    engine,
                    iter(loader),
                    run=run,
                    world=world,
                    start_step=start_step,
                    total_steps=total_steps,
                    samples_in_epoch=len(samples),
                    writer=writer,
                    throughput=Throughput(model.config, world.size, world.device),
                    validate=validate,
                    show=lambda at, last: showcase.show(step, writer.board, at, last=last),
                    save=lambda at: checkpoints.save(
                        at, loader.state_dict(), selection.state_dict() if selection is not None else None
                    ),
                    check_saves=checkpoints.check,
                    check_images=corrupt.check,
                    traced=traced,
                    stop_requests=requests,
                    watchdog=watchdog,
                    selection=selection,
                )
            except DivergedError:
                checkpoints.wait()  # of an earlier step, which was good
                raise
            watchdog.beat("saving the last checkpoint")
            checkpoints.wait()
        ended_at = selection.seen if selection is not None and selection.exhausted else total_steps
        if selection is not None and stop is None:
            early = f"stopped after step {ended_at} of {total_steps}, " if ended_at < total_steps else ""
            _say(world, f"{folder}: {early}{selection.describe()}")
        if world.is_first:
            say_how_it_ended(folder, stop, ended_at)


def _shape(model: MbsdConfig) -> dict[str, Any]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "image_size", "image_cls")
    shape = {name: getattr(model, name) for name in names} | {"patchify_strides": list(model.patchify_strides)}
    return shape if model.architecture == "mbsd" else shape | {"architecture": model.architecture}


def _say(world: World, text: str) -> None:
    if world.is_first:
        say(text)
