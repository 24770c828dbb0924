"""DeepSpeed's JSON as data: read, checked, resolved and changed, without importing deepspeed."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbsd.config.deepspeed_keys import OPTIMIZERS, check_keys, is_number, spelled
from mbsd.errors import UserError
from mbsd.io.settings_text import read_json

ONE_BIT = {"onebitlamb": "Lamb", "onebitadam": "AdamW", "zerooneadam": "AdamW"}
DEFAULT_WARMUP = 0.1  # share of all steps (section 4.3 of the paper)
DEFAULT_LR = {"Lamb": 2e-4, "AdamW": 1e-3, "Adam": 1e-3}  # of the optimizers themselves
AUTO = (None, "auto")
BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


@dataclass(frozen=True)
class BatchSizes:
    """Samples of a step and how they are cut: global_batch = micro_batch * accumulation * world size."""

    global_batch: int
    micro_batch: int
    accumulation: int


@dataclass(frozen=True)
class DeepSpeedConfig:
    """A DeepSpeed JSON.

    Attributes:
        tree: what it holds.
        path: of the file, for messages.
    """

    tree: dict[str, Any]
    path: str = "DeepSpeed's JSON"

    def sizes(self, world_size: int) -> BatchSizes:
        """The batch sizes on so many ranks; `train_batch_size` has to be given.

        Raises:
            UserError: the three batch keys contradict each other; the message names sizes that fit.
        """
        given = [None if self.tree.get(key) in AUTO else self.tree[key] for key in BATCH_KEYS]
        total, micro, accumulation = given
        for key, value in zip(BATCH_KEYS, given, strict=True):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UserError(f"{self.path}: {key}={value!r}; expected a whole number above 0")
        if total is None:
            raise UserError(f"{self.path}: train_batch_size is missing: say the global batch")
        if total % world_size:
            raise UserError(
                f"{self.path}: train_batch_size={total} is not divisible by the {world_size} ranks; "
                f"use {total - total % world_size or world_size} or {total - total % world_size + world_size}"
            )
        if accumulation is None:
            accumulation = max(1, total // (world_size * micro)) if micro is not None else 1
        micro = total // (world_size * accumulation) if micro is None else micro
        if micro * accumulation * world_size != total:
            raise UserError(
                f"{self.path}: train_batch_size={total} is not train_micro_batch_size_per_gpu={micro} x "
                f"gradient_accumulation_steps={accumulation} x {world_size} ranks; leave out the accumulation steps "
                f"and choose a micro-batch that divides {total // world_size}"
            )
        return BatchSizes(total, micro, accumulation)

    def check(self) -> None:
        """Check what does not depend on the number of ranks or steps.

        Raises:
            UserError: a key that is not known, a value of another type or range, or what this project does not train
                with; the message names the file and the key.
        """
        self._refuse_optimizer()
        self._refuse_zero()
        check_keys(self.tree, self.path)
        if self.tree.get("train_batch_size") is None:
            raise UserError(f"{self.path}: train_batch_size is missing: say the global batch")

    def resolved(self, world_size: int, total_steps: int) -> dict[str, Any]:
        """What deepspeed.initialize is given: every "auto", and what a schedule lacks, replaced by what the run knows.

        Where the JSON says nothing of them, DeepSpeed's throughput timer and its search for overflow in bf16 are
        switched off: each makes the host wait for the GPU in every step. The run measures its own throughput, and bf16
        has float32's range: a gradient that is no number there is a broken run, which ends as such.

        Raises:
            UserError: as of `check` and `sizes`.
        """
        resolved, sizes = self.settled(total_steps), self.sizes(world_size)
        resolved |= dict(zip(BATCH_KEYS, (sizes.global_batch, sizes.micro_batch, sizes.accumulation), strict=True))
        resolved.setdefault("steps_per_print", 1 << 30)  # the run's own log holds more
        resolved["timers"] = {"throughput": {"enabled": False}, **resolved.get("timers", {})}
        if precision(resolved) == "bf16":
            resolved["bf16"].setdefault("check_grad_overflow", False)
        return resolved

    def settled(self, total_steps: int) -> dict[str, Any]:
        """What does not depend on the number of ranks of `resolved`: optimizer and schedule.

        Raises:
            UserError: as of `check`.
        """
        self.check()
        resolved = copy.deepcopy(self.tree)
        if "bfloat16" in resolved:
            resolved["bf16"] = resolved.pop("bfloat16")
        kind = spelled(resolved["optimizer"]["type"], OPTIMIZERS)
        assert kind is not None, "checked"
        params = {"lr": DEFAULT_LR[kind]} | resolved["optimizer"].get("params", {})
        resolved["optimizer"] |= {"type": kind, "params": params}
        scheduler = resolved.get("scheduler")
        if scheduler is None:
            resolved.pop("scheduler", None)
        else:
            params = scheduler.setdefault("params", {})
            for key, value in self._schedule_knows(scheduler["type"], total_steps, resolved).items():
                if params.get(key, "auto") == "auto":
                    params[key] = value
        return resolved

    @staticmethod
    def _schedule_knows(kind: str, total_steps: int, resolved: dict[str, Any]) -> dict[str, Any]:
        """A schedule's parameters that follow from the run.

        DeepSpeed's own defaults (a warm-up of 1,000 steps, to 0.001 whatever the optimizer's rate) do not fit a run.
        """
        known: dict[str, Any] = {}
        if kind.startswith("Warmup"):
            known["warmup_num_steps"] = max(1, round(DEFAULT_WARMUP * total_steps))
        if kind in ("WarmupDecayLR", "WarmupCosineLR"):
            known["total_num_steps"] = total_steps
        if kind in ("WarmupLR", "WarmupDecayLR"):
            known["warmup_max_lr"] = resolved["optimizer"]["params"]["lr"]
        return known

    def changed(self, batch_size: int | None, learning_rate: float | None) -> DeepSpeedConfig:
        """A copy with another global batch and learning rate; None leaves what is there.

        A smaller batch has a smaller micro-batch on the same ranks with as many micro-steps; a larger one has more.

        Raises:
            UserError: the JSON states something else that would have to change with it.
        """
        changed = copy.deepcopy(self.tree)
        if learning_rate is not None:
            changed.setdefault("optimizer", {}).setdefault("params", {})["lr"] = learning_rate
            peak = (changed.get("scheduler") or {}).get("params", {}).get("warmup_max_lr", "auto")
            if peak != "auto":
                raise UserError(
                    f'{self.path}: scheduler.params.warmup_max_lr={peak} says the learning rate too: write "auto"'
                )
        if batch_size is not None:
            before, micro = changed.get("train_batch_size"), changed.get("train_micro_batch_size_per_gpu")
            changed["train_batch_size"] = batch_size
            if micro not in AUTO and before not in AUTO and batch_size < before:
                if micro * batch_size % before:
                    raise UserError(
                        f"batch size {batch_size}: {self.path} has train_micro_batch_size_per_gpu={micro} of "
                        f"train_batch_size={before}, and the same share of {batch_size} is no whole number; leave the "
                        "micro-batch out there, or choose another batch size"
                    )
                changed["train_micro_batch_size_per_gpu"] = micro * batch_size // before
            elif micro not in AUTO:
                changed.pop("gradient_accumulation_steps", None)  # follows from the other two
        return DeepSpeedConfig(changed, self.path)

    def batch_and_rate(self) -> tuple[int, float]:
        """The global batch and the learning rate.

        Raises:
            UserError: one of them is not given.
        """
        batch = self.tree.get("train_batch_size")
        rate = self.tree.get("optimizer", {}).get("params", {}).get("lr")
        if not isinstance(batch, int) or not is_number(rate):
            raise UserError(
                f"{self.path}: train_batch_size and optimizer.params.lr are what a study tells runs by: say both"
            )
        return batch, float(rate)

    def _refuse_optimizer(self) -> None:
        """Refuse a missing optimizer, and the 1-bit ones with what to use instead; `check_keys` refuses the rest."""
        section = self.tree.get("optimizer")
        found = section.get("type") if isinstance(section, dict) else section
        if str(found).lower() in ONE_BIT:
            raise UserError(
                f"{self.path}: optimizer.type={found!r}; it sends compressed momentum and cannot run under ZeRO-2; use "
                f'{ONE_BIT[str(found).lower()]}, and for slow networks bf16 or fp16 with "communication_data_type"'
            )
        if section is None:
            raise UserError(f"{self.path}: optimizer.type is missing; expected one of {', '.join(OPTIMIZERS)}")

    def _refuse_zero(self) -> None:
        """Refuse ZeRO-3 and an offloaded optimizer: LAMB needs each rank's slice on its device."""
        zero = self.tree.get("zero_optimization") or {}
        if not isinstance(zero, dict):
            raise UserError(f'{self.path}: zero_optimization={zero!r}; expected an object such as {{"stage": 2}}')
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
                f"{self.path}: zero_optimization.{found}; the model fits without, and LAMB's trust ratios need "
                'every slice where the gradients are: use {"stage": 2} without offload, or 1 or 0'
            )


def precision(tree: dict[str, Any]) -> str:
    """fp16, bf16 or fp32, as a DeepSpeed JSON states it."""
    if (tree.get("fp16") or {}).get("enabled"):
        return "fp16"
    return "bf16" if bf16_section(tree).get("enabled") else "fp32"


def bf16_section(tree: dict[str, Any]) -> dict[str, Any]:
    """The section `bf16`, or `bfloat16`, as DeepSpeed once called it and still reads it; {} where there is none."""
    section: dict[str, Any] | None = tree.get("bf16", tree.get("bfloat16"))
    return section if section is not None else {}


def zero_stage(tree: dict[str, Any]) -> int:
    """The ZeRO stage that a DeepSpeed JSON states; 0 where it states none."""
    return int((tree.get("zero_optimization") or {}).get("stage", 0))


def read_deepspeed(path: Path) -> DeepSpeedConfig:
    """Read a DeepSpeed JSON as it is.

    Raises:
        UserError: it cannot be read, is no object, or has a key twice.
    """
    return DeepSpeedConfig(read_json(path), str(path))
