"""Run config + DeepSpeed's JSON -> a DeepSpeed engine (ZeRO, precision, LAMB, schedule)."""

from __future__ import annotations

import copy
import logging
import random
from typing import Any

import deepspeed
import numpy as np
import torch
from deepspeed.runtime.utils import clip_grad_norm_
from torch import nn

from mbsd.optim.groups import PartRates, build_optimizer, parameter_groups, scheduler_of_groups, with_rates
from mbsd.optim.lamb import Lamb
from mbsd.optim.zero import bind, take_back_first_step
from mbsd.parallel.world import same_on_every_rank
from mbsd.training.divergence import leave_overflows_to_us, loss_scale
from mbsd.training.overflow import check_overflow_at_once

# Warnings of DeepSpeed at every start that do not apply: our LAMB is tested under ZeRO (see mbsd.optim), and the
# schedule's rate is read before its first step on purpose.
EXPECTED_WARNINGS = ("ZeRO with an untested optimizer", "learning rate from scheduler before it has started")


def build_engine(step: nn.Module, resolved: dict[str, Any], rates: PartRates | None = None) -> Any:
    """The DeepSpeed engine around an objective.

    LAMB is ours, bound to ZeRO's slices; Adam and AdamW are DeepSpeed's own. Parameters without requires_grad (what
    no loss of this step reaches) are given to no optimizer.

    Args:
        rates: of parts that are not trained at the run's own rate.
    """
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    config = copy.deepcopy(resolved)
    named = [(name, parameter) for name, parameter in step.named_parameters() if parameter.requires_grad]
    params = config["optimizer"]["params"]
    lamb: Lamb | None = None
    if config["optimizer"]["type"] == "Lamb":
        with same_on_every_rank():
            lamb = build_optimizer(named, config.pop("optimizer")["params"], rates)
        config["zero_allow_untested_optimizer"] = True
        groups = lamb.param_groups
    else:
        found = parameter_groups(named, params.get("weight_decay", 0.0), rates=rates)
        groups = with_rates([{k: v for k, v in group.items() if k != "adapt"} for group in found], params["lr"])
    if rates is not None and "scheduler" in config:
        config["scheduler"] = scheduler_of_groups(config["scheduler"], groups)
    if lamb is None:
        engine, *_ = deepspeed.initialize(model=step, model_parameters=groups, config=config)
        take_back_first_step(engine.basic_optimizer, engine.optimizer)
    else:
        engine, *_ = deepspeed.initialize(model=step, optimizer=lamb, config=config)
        bind(lamb, engine.optimizer)
    return _ours(engine)


def _ours(engine: Any) -> Any:
    _keep_gradient_norm(engine)
    leave_overflows_to_us(engine)
    check_overflow_at_once(engine)
    return engine


def _keep_gradient_norm(engine: Any) -> None:
    """In float32 without ZeRO, DeepSpeed drops the norm that it clips by: keep it, for the log."""
    if engine.optimizer is engine.basic_optimizer:

        def clip() -> None:
            limit, parameters = engine.gradient_clipping(), engine.module.parameters()
            engine._global_grad_norm = clip_grad_norm_(parameters=parameters, max_norm=limit, mpu=engine.mpu)

        engine.clip_fp32_gradients = clip


def _is_news(record: logging.LogRecord) -> bool:
    return not any(expected in record.getMessage() for expected in EXPECTED_WARNINGS)


def set_micro_steps(engine: Any, micro_steps: int) -> None:
    """Let the next step have so many micro-steps; nothing is touched where the step before had as many.

    DeepSpeed divides losses by `gradient_accumulation_steps` and steps where the micro-steps since its beginning are a
    multiple of them: they are counted from this step on. All else that reads the number belongs to offloading.
    """
    if micro_steps != engine.gradient_accumulation_steps():
        engine.set_train_batch_size(micro_steps * engine.train_micro_batch_size_per_gpu() * engine.dp_world_size)
        engine.micro_steps = 0


def lamb_of(engine: Any) -> Lamb | None:
    """The engine's LAMB, without what DeepSpeed has wrapped around it; None if it trains with another optimizer."""
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return optimizer if isinstance(optimizer, Lamb) else None


def training_state(engine: Any) -> dict[str, float]:
    """Skipped steps so far, gradient norm and loss scale of the last step. Asks the device: only when logging."""
    state = {"skipped_steps": float(engine.skipped_steps)}
    norm = engine.get_global_grad_norm()
    if norm is not None:
        state["grad_norm"] = float(norm)
    if engine.fp16_enabled():
        state["loss_scale"] = loss_scale(engine)
    return state


def seed_everything(seed: int, rank: int) -> None:
    """Dropout differs between ranks, weights do not: the model is built before with `torch.manual_seed(seed)`."""
    mine = seed * 10_007 + rank + 1
    torch.manual_seed(mine)
    random.seed(mine)
    np.random.seed(mine % 2**32)
