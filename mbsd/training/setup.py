"""Any training run, put together: data, weights, engine, state, checkpoints, loop."""

from __future__ import annotations

from mbsd.config.deepspeed import DeepSpeedConfig
from mbsd.config.run import BaseConfig
from mbsd.data.inputs import Inputs, open_catalog
from mbsd.model.execution import prepare_execution
from mbsd.parallel.world import on_rank_zero, same_on_every_rank
from mbsd.stages.parts import part_rates
from mbsd.stages.stage import Stage
from mbsd.training.asked import (
    changed_since,
    is_asked_again,
    refuse_exhausted,
    refuse_nothing_left,
    schedule_laid_anew,
)
from mbsd.training.average import WeightAverage
from mbsd.training.checkpoints import Checkpoints, Places, RunParts, checkpoint_root
from mbsd.training.divergence import DivergedError
from mbsd.training.early_stopping import early_stopping_of
from mbsd.training.engine import build_engine, seed_everything
from mbsd.training.feed import Feed
from mbsd.training.run import open_run
from mbsd.training.run_folder import write_run_folder
from mbsd.training.run_log import RunLog
from mbsd.training.screen import end_run, print_start
from mbsd.training.start import start_tokenizer, start_weights
from mbsd.training.state import TrainState
from mbsd.training.trainer import Trainer


def run_stage(config: BaseConfig, ds_config: DeepSpeedConfig, stage: Stage) -> None:
    """Train. Started again, an unfinished run resumes; in a finished one's folder nothing is done, which is printed.

    Every rank takes the same way through this function: what may fail on one rank alone is inside `same_on_every_rank`,
    which holds no collective call.

    Raises:
        UserError: the settings, the data, the weights or the checkpoints do not fit together; or the run diverged.
    """
    early_stopping = early_stopping_of(config, stage)
    with open_run(config, ds_config) as run:
        if run.finished and on_rank_zero(lambda: is_asked_again(run)):
            run.print(f"{run.folder}: finished already (DONE is there); nothing to do")
            return
        with same_on_every_rank():
            stage.check_batch(run.sizes.global_batch)
            needs = stage.needs(config)
            catalog, table = open_catalog(config.data, needs.table)
            train, held_out = (stage.samples(config, catalog, table, split) for split in ("train", "validation"))
            samples = train, held_out
            schedule = run.schedule(len(samples[0]))
        on_rank_zero(lambda: refuse_nothing_left(run, schedule.total_steps, checkpoint_root(run)))
        places = Places.of(run)

        run.watchdog.beat("starting: tokenizer")
        tokenizer = start_tokenizer(config, catalog, run.folder)
        run.watchdog.beat("starting: model and engine")
        with same_on_every_rank():
            inputs = Inputs(catalog, table, tokenizer, start_weights(config))
            objective = stage.objective(config, inputs)
            prepare_execution(objective.model, config)
            rates = part_rates(objective, config.optim)
            feed = Feed.of(run, inputs, needs, samples, objective.model.config, schedule.batches)
        seed_everything(config.run.seed, run.world.rank)
        engine = build_engine(objective, schedule.deepspeed, rates)

        run.watchdog.beat("starting: checkpoint")
        state = TrainState(schedule.total_steps, feed.loader, WeightAverage(engine, config.run.ema), early_stopping)
        parts = RunParts.of(run, inputs, needs, schedule, objective.model, feed.keys)
        checkpoints = Checkpoints(run, engine, places, parts, state)
        origin = checkpoints.restore()
        if run.finished:
            refuse_exhausted(state, run.folder)
            run.print(schedule_laid_anew(engine, schedule.deepspeed, state, checkpoints.rate_before))
        changed = changed_since(run)
        write_run_folder(config, schedule.deepspeed, run.folder, run.world)
        print_start(run, checkpoints, origin, changed, num_held_out=len(samples[1]))
        with RunLog(run, schedule, engine, stage.charts, feed.loader.order, state.step) as log:
            try:
                stop = Trainer(run, engine, feed, state, checkpoints, log).train()
            except DivergedError:
                checkpoints.wait()  # of an earlier step, which was good
                checkpoints.wait_for_mirror()
                raise
            run.stop_requests.close()
            checkpoints.wait()
            if stop is not None:
                end_run(run, state, stop)  # who sent the signal may not wait for a slow mirror
            checkpoints.wait_for_mirror()
            log.mirror(state.step, checkpoints.mirror_failures)
        if stop is None:
            end_run(run, state, stop)
