"""Run config + DeepSpeed's JSON -> a DeepSpeed engine (ZeRO, precision, LAMB, schedule)."""

from __future__ import annotations

import copy
import json
import logging
import random
from dataclasses import dataclass
from typing import Any

import deepspeed
import numpy as np
import torch
from torch import nn

from mbsd.distributed import same_on_every_rank
from mbsd.engine.health import leave_overflows_to_us, loss_scale
from mbsd.errors import UserError
from mbsd.optim.groups import build_optimizer, parameter_groups
from mbsd.optim.lamb import Lamb
from mbsd.optim.zero import bind

OPTIMIZERS = ("Lamb", "AdamW", "Adam")
ONE_BIT = {"onebitlamb": "Lamb", "onebitadam": "AdamW", "zerooneadam": "AdamW"}
# What DeepSpeed warns of at every start and what is meant to be so: its own LAMB would be none (see mbsd.optim), and a
# schedule is asked for its rate before its first step.
EXPECTED_WARNINGS = ("ZeRO with an untested optimizer", "learning rate from scheduler before it has started")
DEFAULT_WARMUP = 0.1  # share of all steps (section 4.3)
DEFAULT_LR = 2e-4


@dataclass(frozen=True)
class BatchSizes:
    """G = micro_batch x accumulation x world_size."""

    global_batch: int
    micro_batch: int
    accumulation: int


def batch_sizes(ds_config: dict[str, Any], world_size: int) -> BatchSizes:
    """What DeepSpeed's three batch keys mean on this many ranks; `train_batch_size` is always given.

    Raises:
        UserError: the numbers do not fit together, with what would.
    """
    keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    given = [None if ds_config.get(key) in (None, "auto") else ds_config[key] for key in keys]
    total, micro, accumulation = given
    for key, value in zip(keys, given, strict=True):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(f"DeepSpeed's JSON: {key}={value!r}; expected a whole number above 0")
    if total is None:
        raise UserError("DeepSpeed's JSON: train_batch_size is missing: say the global batch")
    if total % world_size:
        raise UserError(
            f"DeepSpeed's JSON: train_batch_size={total} is not divisible by the {world_size} ranks; "
            f"use {total - total % world_size or world_size} or {total - total % world_size + world_size}"
        )
    if accumulation is None:
        accumulation = max(1, total // (world_size * micro)) if micro is not None else 1
    micro = total // (world_size * accumulation) if micro is None else micro
    if micro * accumulation * world_size != total:
        raise UserError(
            f"DeepSpeed's JSON: train_batch_size={total} is not train_micro_batch_size_per_gpu={micro} x "
            f"gradient_accumulation_steps={accumulation} x {world_size} ranks; leave out the accumulation steps and "
            f"choose a micro-batch that divides {total // world_size}"
        )
    return BatchSizes(total, micro, accumulation)


def resolve(ds_config: dict[str, Any], world_size: int, total_steps: int) -> dict[str, Any]:
    """DeepSpeed's JSON with every "auto" replaced by what the run knows.

    Raises:
        UserError: an optimizer or ZeRO stage that this project does not train with.
    """
    resolved = copy.deepcopy(ds_config)
    sizes = batch_sizes(ds_config, world_size)
    resolved["train_batch_size"] = sizes.global_batch
    resolved["train_micro_batch_size_per_gpu"] = sizes.micro_batch
    resolved["gradient_accumulation_steps"] = sizes.accumulation
    resolved.setdefault("steps_per_print", 1 << 30)  # our own log says more

    resolved["optimizer"] = _optimizer(ds_config)
    _refuse_zero(ds_config)
    scheduler = resolved.get("scheduler")
    if scheduler is not None:
        params = scheduler.setdefault("params", {})
        if params.get("total_num_steps") == "auto":
            params["total_num_steps"] = total_steps
        if params.get("warmup_num_steps") == "auto":
            params["warmup_num_steps"] = max(1, round(DEFAULT_WARMUP * total_steps))
        if params.get("warmup_max_lr") == "auto":
            params["warmup_max_lr"] = resolved["optimizer"]["params"].get("lr", DEFAULT_LR)
    return resolved


def _optimizer(ds_config: dict[str, Any]) -> dict[str, Any]:
    """The `optimizer` section with its type spelled as in `OPTIMIZERS`; DeepSpeed does not mind capitals either."""
    section = copy.deepcopy(ds_config.get("optimizer") or {})
    found = section.get("type")
    kind = {name.lower(): name for name in OPTIMIZERS}.get(str(found).lower())
    if kind is None:
        expected = f"expected one of {', '.join(OPTIMIZERS)}"
        if str(found).lower() in ONE_BIT:
            expected = (
                f"which sends compressed momentum and cannot run under ZeRO-2; use {ONE_BIT[str(found).lower()]}, and "
                'for slow networks bf16 or fp16 with "communication_data_type"'
            )
        raise UserError(f"DeepSpeed's JSON: optimizer.type={found!r}; {expected}")
    return {**section, "type": kind, "params": dict(section.get("params") or {})}


def _refuse_zero(ds_config: dict[str, Any]) -> None:
    """ZeRO-3 and an offloaded optimizer, for LAMB needs each rank's slice on its device."""
    zero = ds_config.get("zero_optimization") or {}
    if not isinstance(zero, dict):
        raise UserError(f'DeepSpeed\'s JSON: zero_optimization={zero!r}; expected an object such as {{"stage": 2}}')
    offload = zero.get("offload_optimizer") or {}
    found = None
    if zero.get("stage", 0) not in (0, 1, 2):
        found = f"stage={zero['stage']!r}"
    elif not isinstance(offload, dict) or offload.get("device", "none") != "none":
        found = f"offload_optimizer={json.dumps(offload)}"
    elif zero.get("cpu_offload"):
        found = "cpu_offload=true"
    if found is not None:
        raise UserError(
            f"DeepSpeed's JSON: zero_optimization.{found}; the model fits without, and LAMB's trust ratios need every "
            'slice where the gradients are: use {"stage": 2} without offload, or 1 or 0'
        )


def precision(ds_config: dict[str, Any]) -> str:
    """fp16, bf16 or fp32, as a DeepSpeed JSON says."""
    return next((name for name in ("fp16", "bf16") if (ds_config.get(name) or {}).get("enabled")), "fp32")


def build_engine(step: nn.Module, resolved: dict[str, Any]) -> Any:
    """The DeepSpeed engine around a training step.

    LAMB is ours, bound to ZeRO's slices; Adam and AdamW are DeepSpeed's own. Parameters without requires_grad (what
    no loss of this step reaches) are given to no optimizer.
    """
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    config = copy.deepcopy(resolved)
    named = [(name, parameter) for name, parameter in step.named_parameters() if parameter.requires_grad]
    if config["optimizer"]["type"] != "Lamb":
        weight_decay = config["optimizer"]["params"].get("weight_decay", 0.0)
        groups = [
            {"params": group["params"], "weight_decay": group["weight_decay"]}
            for group in parameter_groups(named, weight_decay)
        ]
        engine, *_ = deepspeed.initialize(model=step, model_parameters=groups, config=config)
        leave_overflows_to_us(engine)
        return engine
    with same_on_every_rank():
        optimizer: Lamb = build_optimizer(named, config.pop("optimizer")["params"])
    config["zero_allow_untested_optimizer"] = True
    engine, *_ = deepspeed.initialize(model=step, optimizer=optimizer, config=config)
    bind(optimizer, engine.optimizer)
    leave_overflows_to_us(engine)
    return engine


def _is_news(record: logging.LogRecord) -> bool:
    return not any(expected in record.getMessage() for expected in EXPECTED_WARNINGS)


def lamb_of(engine: Any) -> Lamb | None:
    """The engine's LAMB, whatever DeepSpeed has wrapped around it; None if it trains with another optimizer."""
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return optimizer if isinstance(optimizer, Lamb) else None


def training_state(engine: Any) -> dict[str, float]:
    """Learning rate, gradient norm and loss scale of the last step. Asks the device: only when logging."""
    state = {"lr": float(engine.get_lr()[0]), "skipped_steps": float(engine.skipped_steps)}
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
