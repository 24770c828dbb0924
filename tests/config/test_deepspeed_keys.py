"""DeepSpeed's JSON: every key is known or refused in one line, and DeepSpeed knows no key that our list lacks."""

from __future__ import annotations

import inspect
import json
import typing
from pathlib import Path
from typing import Any

import pydantic
import pytest

from mbsd.config.deepspeed import DeepSpeedConfig, precision
from mbsd.config.deepspeed_keys import BF16, FP16, OPTIMIZERS, SCHEDULERS, SWITCH, TOP, ZERO, Known, Value
from mbsd.config.parse import parse
from mbsd.config.run import PretrainConfig
from mbsd.errors import UserError
from tests.ranks import ROOT
from tests.settings import ADAM, DS_CONFIG


class Asked(dict[str, Any]):
    """A JSON that notes each of its own keys that DeepSpeed looks for; a copy notes them in the same place."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.seen: set[str] = set()

    def __contains__(self, key: object) -> bool:
        self.seen.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.seen.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return _Keys(self)


class _Keys:
    def __init__(self, asked: Asked) -> None:
        self.asked = asked

    def __contains__(self, key: object) -> bool:
        return key in self.asked

    def __iter__(self) -> Any:
        return iter(dict.keys(self.asked))


def test_every_key_at_the_top_that_deepspeed_looks_for() -> None:
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS
    from deepspeed.runtime.config import DeepSpeedConfig as Theirs

    asked = Asked({"train_batch_size": 16})
    Theirs(asked)
    assert len(asked.seen) > 50, "DeepSpeed reads its JSON in another way: this test sees nothing of it"
    # `compile` and the monitors are read by pydantic classes of their own, from the same keys.
    assert asked.seen - TOP.keys() == set()
    assert set(_REMOVED_TOP_LEVEL_CONFIG_KEYS) - TOP.keys() == set()


def sections() -> list[tuple[Known, type[pydantic.BaseModel]]]:
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    timers, comms = typing.cast(Any, TOP["timers"])["throughput"], typing.cast(Any, TOP["comms_logger"])
    return [
        (FP16, DeepSpeedFP16Config), (BF16, DeepSpeedBF16Config), (ZERO, DeepSpeedZeroConfig),
        (timers, DeepSpeedThroughputTimerConfig), (comms, CommsLoggerConfig),
    ]  # fmt: skip


@pytest.mark.parametrize("section", range(5))
def test_a_section_has_the_fields_of_deepspeeds_class(section: int) -> None:
    from deepspeed.runtime.config import _REMOVED_ZERO_CONFIG_KEYS

    known, theirs = sections()[section]
    names = {name for field, info in theirs.model_fields.items() for name in (field, info.alias) if name}
    removed = set(_REMOVED_ZERO_CONFIG_KEYS) if known is ZERO else set()
    assert set(known) == names | removed
    for field, info in theirs.model_fields.items():
        entry, default = known[field], info.get_default(call_default_factory=True)
        if not isinstance(entry, Value):
            assert isinstance(entry, str), f"{field} is a section of its own"
            continue
        assert default is None or entry.fits(getattr(default, "value", default)), f"{field}: its default {default!r}"
        assert (entry is SWITCH) == (info.annotation in (bool, bool | None)) or field == "cpu_offload", field


def test_the_parameters_of_schedules_are_those_of_deepspeeds_classes() -> None:
    from deepspeed.runtime import lr_schedules

    for kind, known in SCHEDULERS.items():
        theirs = set(inspect.signature(getattr(lr_schedules, kind)).parameters) - {"optimizer"}
        assert set(known) == theirs, kind


def test_the_parameters_of_adam_are_those_of_torchs_and_deepspeeds_classes() -> None:
    import torch
    from deepspeed.ops.adam import FusedAdam
    from deepspeed.runtime.config import ADAM_W_MODE, TORCH_ADAM_PARAM

    ours = {key for key, entry in OPTIMIZERS["AdamW"].items() if isinstance(entry, Value)}
    of_torch = set(inspect.signature(torch.optim.AdamW.__init__).parameters)
    of_deepspeed = set(inspect.signature(FusedAdam.__init__).parameters)
    assert ours <= of_torch | of_deepspeed | {ADAM_W_MODE, TORCH_ADAM_PARAM}
    assert {"foreach", "fused"} <= of_torch - of_deepspeed and "bias_correction" in of_deepspeed - of_torch
    from mbsd.optim.groups import JSON_KEYS

    assert {key for key, entry in OPTIMIZERS["Lamb"].items() if isinstance(entry, Value)} == set(JSON_KEYS)


WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"gradient_cliping": 1.0}, ["unknown key gradient_cliping", "meant gradient_clipping?"]),
    ({"nonsense": 1}, ["unknown key nonsense", "train_batch_size"]),
    ({"fp16": {"enabled": "auto"}}, ["fp16.enabled", '"auto"', "true or false"]),
    ({"bf16": {"enabled": "auto"}}, ["bf16.enabled", '"auto"', "true or false"]),
    ({"bf16": {"enabled": "true"}}, ["bf16.enabled", '"true"']),
    ({"bf16": True}, ["bf16", "expected an object"]),
    ({"fp16": None}, ["fp16", "found null", "expected an object"]),
    ({"fp16": {"enabled": True, "loss_scal": 0}}, ["fp16.loss_scal", "meant loss_scale?"]),
    ({"fp16": {"enabled": True, "loss_scale_window": 0}}, ["fp16.loss_scale_window", "1 or more"]),
    ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, ["fp16.enabled", "bf16.enabled", "remove one"]),
    ({"bfloat16": {"enabled": True}, "bf16": {}}, ["bf16 and bfloat16", "remove bfloat16"]),
    ({"bfloat16": {"enabled": True}, "fp16": {"enabled": True}}, ["fp16.enabled and bfloat16.enabled"]),
    ({"bfloat16": {"enabled": "auto"}}, ["bfloat16.enabled", '"auto"']),
    ({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, ["torch_autocast", '"bf16"']),
    ({"data_types": {"param_dtype": "bf16"}}, ["data_types"]),
    ({"gradient_clipping": "auto"}, ["gradient_clipping", '"auto"', "a number"]),
    ({"gradient_clipping": "1.0"}, ["gradient_clipping", '"1.0"', "a number"]),
    ({"zero_optimization": {"stage": 2, "reduce_bucket_size": -(10**400)}}, ["reduce_bucket_size", "above 0"]),
    ({"gradient_clipping": -1}, ["gradient_clipping", "found -1"]),
    ({"gradient_clipping": float("inf")}, ["gradient_clipping", "a number"]),
    ({"train_batch_size": "auto"}, ["train_batch_size", '"auto"']),
    ({"train_batch_size": 16.0}, ["train_batch_size", "16.0", "a whole number"]),
    ({"train_micro_batch_size_per_gpu": True}, ["train_micro_batch_size_per_gpu", "true"]),
    ({"zero_optimization": {"stag": 2}}, ["zero_optimization.stag", "meant stage?"]),
    ({"zero_optimization": {"stage": True}}, ["zero_optimization.stage", "true", "0, 1 or 2"]),
    ({"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}, ["reduce_bucket_size", '"auto"']),
    ({"zero_optimization": {"stage": 2, "stage3_max_live_parameters": 9}}, ["stage3_max_live_parameters", "ZeRO-3"]),
    ({"communication_data_type": "float16"}, ["communication_data_type", '"fp16"']),
    ({"curriculum_learning": {"enabled": True}}, ["curriculum_learning", "remove it"]),
    ({"timers": {"throughput": {"enabeld": False}}}, ["timers.throughput.enabeld", "meant enabled?"]),
    ({"elasticity": {}}, ["elasticity", "removed"]),
    ({"scheduler": {"type": "WarmupDecay"}}, ["scheduler.type='WarmupDecay'", "meant WarmupDecayLR?"]),
    ({"scheduler": {"params": {}}}, ["scheduler.type=None", "WarmupLR"]),
    ({"scheduler": {"type": "OneCycle", "params": {"cycle_max_lr": 1}}}, ["cycle_min_lr is missing"]),
    ({"scheduler": {"type": "WarmupLR", "param": {}}}, ["scheduler.param", "meant params?"]),
    ({"scheduler": []}, ["scheduler", "expected an object"]),
    *(
        ({"scheduler": {"type": "WarmupLR", "params": {key: value}}}, [f"scheduler.params.{key}", *named])
        for key, value, named in [
            ("warmup_steps", 3, ["meant warmup_num_steps?"]),
            ("warmup_num_steps", 0, ["1 or more"]),
            ("warmup_num_steps", 0.1, ["found 0.1", "a whole number"]),
            ("warmup_type", "cosine", ['"log" or "linear"']),
            ("warmup_max_lr", "1e-4", ['"1e-4"', "auto"]),
            ("warmup_min_lr", "auto", ['"auto"', "a number"]),
            ("total_num_steps", "auto", ["unknown key"]),
            ("last_batch_iteration", 3, ["a checkpoint knows"]),
        ]
    ),
    *(
        ({"optimizer": {"type": kind, "params": {key: value}}}, [f"optimizer.params.{key}", *named])
        for kind in ("Lamb", "AdamW", "adam")
        for key, value, named in [
            ("lr", "1e-4", ['"1e-4"', "a number"]),
            ("lr", "auto", ['"auto"', "a number"]),
            ("lr", -0.1, ["-0.1", "0 or more"]),
            ("learning_rate", 0.001, ["unknown key", "meant lr?"]),
            ("betas", [0.9], ["[0.9]", "two numbers"]),
            ("betas", [0.9, 1.0], ["two numbers"]),
            ("betas", "auto", ['"auto"']),
            ("weight_decay", "auto", ['"auto"']),
            ("eps", None, ["null"]),
            ("max_grad_norm", 1.0, ["gradient_clipping"]),
        ]
    ),
    ({"optimizer": {"type": "AdamW", "params": {"fused": True}}}, ["fused", "torch_adam"]),
    ({"optimizer": {"type": "AdamW", "params": {"torch_adam": True, "bias_correction": True}}}, ["bias_correction"]),
    ({"optimizer": {"type": "Lamb", "params": {"max_coeff": 0.1, "min_coeff": 0.5}}}, ["max_coeff", "min_coeff"]),
    ({"optimizer": {"type": "Lamb", "legacy_fusion": True}}, ["optimizer.legacy_fusion"]),
]


@pytest.mark.parametrize(("changes", "named"), WRONG, ids=lambda value: json.dumps(value)[:60])
def test_a_wrong_key_or_value_is_one_line(changes: dict[str, Any], named: list[str], tmp_path: Path) -> None:
    """Before any process group: reading the settings refuses it."""
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({**DS_CONFIG, **changes}))
    words = ["--config", str(ROOT / "launchers/configs/small_stage1.yaml"), "--deepspeed_config", str(path)]
    with pytest.raises(UserError) as refused:
        parse(PretrainConfig, words)
    line = str(refused.value)
    assert line.startswith(str(path)) and "\n" not in line
    assert all(part in line for part in named), line


def test_what_is_right_is_taken(tmp_path: Path) -> None:
    """Keys that change no result, sizes as DeepSpeed's examples write them, and what a fault's mending adds."""
    given = {
        **DS_CONFIG, "bf16": {"enabled": True, "check_grad_overflow": False}, "optimizer": ADAM, "steps_per_print": 10,
        "zero_optimization": {"stage": 1, "reduce_bucket_size": 5e8, "overlap_comm": True,
                              "offload_optimizer": {"device": "none"}},
        "timers": {"throughput": {"enabled": False, "synchronized": False}}, "zero_allow_untested_optimizer": True,
        "communication_data_type": "fp32", "prescale_gradients": False, "wall_clock_breakdown": False,
        "gradient_accumulation_steps": "auto", "train_micro_batch_size_per_gpu": "auto",
    }  # fmt: skip
    old = {"bfloat16" if key == "bf16" else key: value for key, value in given.items()}
    resolved = DeepSpeedConfig(given).resolved(2, 100)
    assert DeepSpeedConfig(old).resolved(2, 100) == resolved, "as DeepSpeed once called it"
    assert precision(resolved) == "bf16" and "auto" not in json.dumps(resolved)
    from deepspeed.runtime.config import DeepSpeedConfig as Theirs

    theirs = Theirs({**resolved, "train_batch_size": 8})  # of one process
    assert theirs.bfloat16_config.enabled and not theirs.float16_config.enabled
    assert theirs.zero_config.reduce_bucket_size == 500_000_000
