"""Every key of DeepSpeed's JSON: what it takes here, or why it is refused. No import of deepspeed.

DeepSpeed ignores a key that it does not know, takes "auto" in most places for "not set", and reports other mistakes by
a traceback of every rank. `tests/config/test_deepspeed_keys.py` compares this list with DeepSpeed's own classes.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mbsd.errors import UserError


@dataclass(frozen=True)
class Value:
    """A key that is read.

    Attributes:
        expected: in words.
        fits: whether a value is such a one.
        auto: "auto" stands for what the run knows.
    """

    expected: str
    fits: Callable[[Any], bool]
    auto: bool = False


def whole(least: int, *, auto: bool = False) -> Value:
    """A whole number from `least`."""
    return Value(f"a whole number of {least} or more", lambda v: _is_whole(v) and v >= least, auto)


def number(least: float, *, auto: bool = False, above: bool = False) -> Value:
    """A finite number from `least`, which itself is left out where `above` is set."""
    expected = f"a number above {least:g}" if above else f"a number of {least:g} or more"
    return Value(expected, lambda v: is_number(v) and (v > least if above else v >= least), auto)


def one_of(*values: Any) -> Value:
    """One of these texts or numbers; none of them is a switch."""
    expected = " or ".join([", ".join(map(json.dumps, values[:-1])), json.dumps(values[-1])][len(values) == 1 :])
    return Value(expected, lambda v: not isinstance(v, bool) and v in values)


def is_number(value: object) -> bool:
    """Whether it is a finite number; true and false are none."""
    whole = isinstance(value, int) and not isinstance(value, bool)  # of any size, also beyond a float's
    return whole or (isinstance(value, float) and math.isfinite(value))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(is_number(beta) and 0 <= beta < 1 for beta in value)


# A key is a Value, a section of keys, or the reason for which it is refused.
Known = Mapping[str, "Value | Known | str"]

SWITCH = Value("true or false", lambda v: isinstance(v, bool))
ON = Value("true, or no such key", lambda v: v is True)
# DeepSpeed's examples write sizes as 5e8, which JSON reads as a number with a point.
SIZE = Value("a whole number above 0", lambda v: is_number(v) and v > 0 and v == int(v))
RATE = number(0)
BETAS = Value("two numbers from 0 to below 1, such as [0.9, 0.98]", _is_pair)
DTYPE = one_of("fp32", "fp16", "bf16")
NO_OFFLOAD = Value(
    'null or {"device": "none"}', lambda v: v is None or (isinstance(v, dict) and v.get("device", "none") == "none")
)
TEXTS = Value("a list of texts", lambda v: isinstance(v, list) and all(isinstance(text, str) for text in v))

_METRICS = "it says again where run.dir writes its metrics"
_CHECKPOINTS = (
    "checkpoints are this project's own: run.save_every, run.keep_last, run.node_local_checkpoints in the YAML"
)
_DATA = "samples, their order and their batches are this project's own: data in the YAML"
_WHOLE_MODEL = "every rank holds the whole model"
_REMOVED = "DeepSpeed has removed it"
_STAGE_3 = "it belongs to ZeRO-3, and this project trains with ZeRO-0, -1 and -2"
_MASTERS = "master weights and moments are float32"
_OFFLOAD = "the model fits without offload, and LAMB's trust ratios need every slice where the gradients are"

_LAMB: Known = {
    "lr": RATE,
    "betas": BETAS,
    "eps": number(0),
    "weight_decay": number(0),
    "bias_correction": SWITCH,
    "max_coeff": Value("null or a number of 0 or more", lambda v: v is None or (is_number(v) and v >= 0)),
    "min_coeff": number(0),
    "adapt_excluded": SWITCH,
    "max_grad_norm": "gradients are clipped by gradient_clipping, at the top of the file",
}
_ADAM: Known = {
    "lr": RATE,
    "betas": BETAS,
    "eps": number(0),
    "weight_decay": number(0),
    "torch_adam": SWITCH,
    "adam_w_mode": SWITCH,
    "bias_correction": SWITCH,
    "foreach": SWITCH,
    "fused": SWITCH,
    "amsgrad": "checkpoints hold two moments of a weight, and AMSGrad has three",
    "max_grad_norm": "gradients are clipped by gradient_clipping, at the top of the file",
    "fp32_optimizer_states": _OFFLOAD,
}
# Of Adam: keys that torch's class alone reads, and DeepSpeed's alone.
TORCH_ADAM_ALONE = ("foreach", "fused")
FUSED_ADAM_ALONE = ("bias_correction",)
OPTIMIZERS: Mapping[str, Known] = {"Lamb": _LAMB, "AdamW": _ADAM, "Adam": _ADAM}

_TOTAL = whole(1, auto=True)
_WARMUP: Known = {
    "warmup_num_steps": whole(1, auto=True),
    "warmup_type": one_of("log", "linear"),
    "last_batch_iteration": "a checkpoint knows where the schedule is",
}
_WARMUP_RATES: Known = {**_WARMUP, "warmup_min_lr": RATE, "warmup_max_lr": number(0, auto=True)}
SCHEDULERS: Mapping[str, Known] = {
    "WarmupLR": _WARMUP_RATES,
    "WarmupDecayLR": {**_WARMUP_RATES, "total_num_steps": _TOTAL},
    "WarmupCosineLR": {
        **_WARMUP, "total_num_steps": _TOTAL, "warmup_min_ratio": number(0), "cos_min_ratio": number(0),
    },
    "OneCycle": {
        "cycle_min_lr": RATE,
        "cycle_max_lr": RATE,
        "decay_lr_rate": number(0),
        "cycle_first_step_size": whole(1),
        "cycle_second_step_size": whole(0),
        "cycle_first_stair_count": whole(0),
        "cycle_second_stair_count": whole(0),
        "decay_step_size": whole(0),
        "cycle_momentum": SWITCH,
        "cycle_min_mom": number(0),
        "cycle_max_mom": number(0),
        "decay_mom_rate": number(0),
        "last_batch_iteration": "a checkpoint knows where the schedule is",
    },
    "LRRangeTest": {
        "lr_range_test_min_lr": RATE,
        "lr_range_test_step_size": whole(1),
        "lr_range_test_step_rate": number(0),
        "lr_range_test_staircase": SWITCH,
        "last_batch_iteration": "a checkpoint knows where the schedule is",
    },
}  # fmt: skip
# Other libraries' names, which no likeness of letters finds.
SYNONYMS = {"learning_rate": "lr", "batch_size": "train_batch_size", "max_lr": "warmup_max_lr"}
REQUIRED = {"OneCycle": ("cycle_min_lr", "cycle_max_lr")}

FP16: Known = {
    "enabled": SWITCH,
    "auto_cast": SWITCH,
    "loss_scale": number(0),
    "initial_scale_power": whole(0),
    "loss_scale_window": whole(1),
    "hysteresis": whole(1),
    "consecutive_hysteresis": SWITCH,
    "min_loss_scale": whole(1),
    "fp16_master_weights_and_grads": _MASTERS,
}
BF16: Known = {
    "enabled": SWITCH,
    "immediate_grad_update": SWITCH,
    "check_grad_overflow": SWITCH,
    "bf16_master_weights_and_grads": _MASTERS,
    "bf16_optimizer_states": _MASTERS,
}
ZERO: Known = {
    "stage": one_of(0, 1, 2),
    "contiguous_gradients": SWITCH,
    "reduce_scatter": SWITCH,
    "reduce_bucket_size": SIZE,
    "use_multi_rank_bucket_allreduce": SWITCH,
    "allgather_partitions": SWITCH,
    "allgather_bucket_size": SIZE,
    "overlap_comm": SWITCH,
    "ignore_unused_parameters": SWITCH,
    "round_robin_gradients": SWITCH,
    "parameter_alignment": SWITCH,
    "enable_sanity_checks": SWITCH,
    "compute_grad_norm": "the norm of the gradients is logged",
    "load_from_fp32_weights": _CHECKPOINTS,
    "elastic_checkpoint": _CHECKPOINTS,
    "legacy_stage1": _REMOVED,
    "offload_optimizer": NO_OFFLOAD,
    "offload_param": NO_OFFLOAD,
    "cpu_offload": Value("false, or no such key", lambda v: v is False),
    "cpu_offload_param": _OFFLOAD,
    "cpu_offload_use_pin_memory": _OFFLOAD,
    "zenflow": _OFFLOAD,
    **dict.fromkeys(
        ("sub_group_size", "stage3_prefetch_bucket_size", "prefetch_bucket_size", "stage3_param_persistence_threshold",
         "param_persistence_threshold", "stage3_model_persistence_threshold", "model_persistence_threshold",
         "stage3_max_live_parameters", "max_live_parameters", "stage3_max_reuse_distance", "max_reuse_distance",
         "stage3_gather_16bit_weights_on_model_save", "gather_16bit_weights_on_model_save",
         "stage3_gather_fp16_weights_on_model_save", "stage3_module_granularity_threshold",
         "module_granularity_threshold", "stage3_use_all_reduce_for_fetch_params", "use_all_reduce_for_fetch_params",
         "stage3_allgather_sequential", "allgather_sequential", "zero_hpz_partition_size", "zero_quantized_weights",
         "zero_quantized_nontrainable_weights", "zero_quantized_gradients", "memory_efficient_linear",
         "pipeline_loading_checkpoint", "override_module_apply", "log_trace_cache_warnings",
         "save_muon_momentum_buffer_in_memory", "leaf_module"),
        _STAGE_3,
    ),
    **dict.fromkeys(("mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param"), _REMOVED),
}  # fmt: skip
TOP: Known = {
    "train_batch_size": whole(1),
    "train_micro_batch_size_per_gpu": whole(1, auto=True),
    "gradient_accumulation_steps": whole(1, auto=True),
    "gradient_clipping": number(0),
    "optimizer": {},  # by its type: OPTIMIZERS
    "scheduler": {},  # by its type: SCHEDULERS
    "fp16": FP16,
    "bf16": BF16,
    "bfloat16": BF16,  # as DeepSpeed once called it
    "zero_optimization": ZERO,
    "zero_allow_untested_optimizer": ON,
    "communication_data_type": DTYPE,
    "prescale_gradients": SWITCH,
    "gradient_predivide_factor": number(0, above=True),
    "disable_allgather": SWITCH,
    "timers": {"throughput": {"enabled": SWITCH, "synchronized": SWITCH}},
    "steps_per_print": whole(1),
    "wall_clock_breakdown": SWITCH,
    "memory_breakdown": SWITCH,
    "dump_state": SWITCH,
    "disable_python_gc": SWITCH,
    "comms_logger": {
        "enabled": SWITCH, "prof_all": SWITCH, "prof_ops": TEXTS, "verbose": SWITCH, "debug": SWITCH,
    },
    "log_level": one_of("debug", "info", "warning", "error", "critical"),
    "torch_autocast": 'it would train float32 weights in another way: write "bf16" or "fp16"',
    "data_types": 'gradients and weights follow from "bf16" or "fp16"',
    "gradient_allreduce_op": "losses are means over all ranks, and so are gradients",
    "managed_gradient_accumulation": "the loop counts on it",
    **dict.fromkeys(("tensorboard", "csv_monitor", "wandb", "comet"), _METRICS),
    **dict.fromkeys(("checkpoint", "datastates_ckpt"), _CHECKPOINTS),
    **dict.fromkeys(("data_efficiency", "dataloader_drop_last", "curriculum_learning"), _DATA),
    **dict.fromkeys(
        ("pipeline", "tensor_parallel", "expert_parallel", "use_data_before_expert_parallelism",
         "seq_parallel_communication_data_type", "sequence_parallel_size", "data_parallel_size"),
        _WHOLE_MODEL,
    ),
    **dict.fromkeys(("zero_force_ds_cpu_optimizer", "aio"), _OFFLOAD),
    **dict.fromkeys(("hybrid_engine", "weight_quantization"), "it is for inference: see `mbsd export`"),
    "activation_checkpointing": "it is model.activation_checkpointing in the YAML",
    "compile": "it is model.compile in the YAML",
    "flops_profiler": "run.profile in the YAML traces steps, and `mbsd plan` counts FLOPs",
    "autotuning": "`mbsd plan` names the largest micro-batch",
    "vocabulary_size": "it follows from the tokenizer",
    **dict.fromkeys(
        ("nebula", "compression_training", "amp", "quantize_training", "sparse_gradients", "eigenvalue",
         "sparse_attention", "elasticity", "graph_harvesting", "progressive_layer_drop"),
        _REMOVED,
    ),
}  # fmt: skip


def check_keys(tree: Mapping[str, Any], path: str) -> None:
    """Check every key of a DeepSpeed JSON.

    Args:
        path: of the file, for messages.

    Raises:
        UserError: a key that is not known, is refused, or has a value of another type or range; in one line.
    """
    _check_section(tree, TOP, path, "")
    for name, kinds in (("optimizer", OPTIMIZERS), ("scheduler", SCHEDULERS)):
        section = tree.get(name)
        if section is not None:
            _check_typed(section, kinds, path, name)
    enabled = [name for name in ("fp16", "bf16", "bfloat16") if tree.get(name, {}).get("enabled")]
    if len(enabled) > 1:
        raise UserError(f"{path}: {' and '.join(f'{name}.enabled' for name in enabled)} are true; remove one of them")
    if "bf16" in tree and "bfloat16" in tree:
        raise UserError(f"{path}: bf16 and bfloat16 are one section, by its new and its old name; remove bfloat16")


def _check_typed(section: Any, kinds: Mapping[str, Known], path: str, name: str) -> None:
    """`optimizer` and `scheduler`: a type, and its params."""
    _expect(isinstance(section, dict), path, name, section, f'an object such as {{"type": "{next(iter(kinds))}"}}')
    _check_section({key: 0 for key in section}, {"type": _ANY, "params": _ANY}, path, f"{name}.")
    found = section.get("type")
    kind = spelled(found, kinds)
    if kind is None:
        raise UserError(f"{path}: {name}.type={found!r}; expected one of {', '.join(kinds)}{_nearest(found, kinds)}")
    params = section.get("params", {})
    _expect(isinstance(params, dict), path, f"{name}.params", params, "an object")
    _check_section(params, kinds[kind], path, f"{name}.params.")
    for key in REQUIRED.get(kind, ()):
        if key not in params:
            raise UserError(f"{path}: {name}.params.{key} is missing: {kind} needs it")
    if name == "optimizer" and kind != "Lamb":
        torch_adam = params.get("torch_adam", False)
        for key in FUSED_ADAM_ALONE if torch_adam else TORCH_ADAM_ALONE:
            if key in params:
                raise UserError(
                    f"{path}: {name}.params.{key} is not read where torch_adam is {json.dumps(torch_adam)}: remove it"
                )
    low, high = params.get("min_coeff", 0.0), params.get("max_coeff")
    if high is not None and high < low:
        raise UserError(f"{path}: {name}.params.max_coeff={high} is below min_coeff={low}")


_ANY = Value("anything", lambda v: True)


def spelled(found: object, kinds: Mapping[str, Known]) -> str | None:
    """A type as it is spelled here: of optimizers DeepSpeed ignores capitals, of schedules it does not."""
    if kinds is SCHEDULERS:
        return found if isinstance(found, str) and found in kinds else None
    return {kind.lower(): kind for kind in kinds}.get(str(found).lower())


def _check_section(section: Mapping[str, Any], known: Known, path: str, prefix: str) -> None:
    for key, value in section.items():
        name, entry = f"{prefix}{key}", known.get(key)
        if entry is None:
            accepted = [k for k, v in known.items() if not isinstance(v, str)]
            near = _nearest(key, accepted)
            raise UserError(f"{path}: unknown key {name}{near or '; known are ' + ', '.join(accepted)}")
        if isinstance(entry, str):
            raise UserError(f"{path}: {name} is not used here: {entry}; remove it")
        if isinstance(entry, Value):
            if not (entry.auto and value == "auto"):
                _expect(entry.fits(value), path, name, value, f"{entry.expected}{', or auto' if entry.auto else ''}")
        elif name not in ("optimizer", "scheduler"):
            _expect(isinstance(value, dict), path, name, value, "an object")
            _check_section(value, entry, path, f"{name}.")


def _expect(fits: bool, path: str, name: str, found: Any, expected: str) -> None:
    if not fits:
        raise UserError(f"{path}: {name}: found {json.dumps(found)}, expected {expected}")


def _nearest(key: object, known: Any) -> str:
    said = SYNONYMS.get(str(key))
    near = [said] if said in known else difflib.get_close_matches(str(key), known, n=1)
    return f"; meant {near[0]}?" if near else ""
