"""`mbsd bench step`: a whole training step, packed, against the same step with padding as one writes it by hand.

One set of weights in one DeepSpeed engine (ZeRO-2, LAMB); the contestants differ in forward and backward alone. Before
anything is timed, all of them have to agree in loss and gradient norm, dropout off. Then they take turns with dropout
on, and a ratio is the median over turns of ratios within a turn. Pictures and words are drawn, and are on the device.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mbsd.config.data import DataConfig
from mbsd.config.deepspeed import DeepSpeedConfig
from mbsd.config.run import PretrainConfig, RunConfig
from mbsd.data.spec import Masked
from mbsd.errors import UserError
from mbsd.metrics.throughput import data_sheet_peak, head_flops, training_flops
from mbsd.model.mbsd import MbsdConfig
from mbsd.parallel.world import World
from mbsd.stages.registry import find_stage
from mbsd.tools.bench.ranks import on_ranks
from mbsd.tools.bench.step_batches import LIMITS, Drawn, Padded, draw, packed, padded, padded_labels
from mbsd.tools.bench.step_plain import PlainModel
from mbsd.tools.bench.step_report import print_step
from mbsd.tools.plan.trace import Ledger, SavedBytes
from mbsd.training.engine import build_engine

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # what a GPU is timed in, the first that it has
PACKED, TO_LIMIT, TO_LONGEST, TOGETHER = "packed", "to 144", "to the longest", "views together"
MODELS = {
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "small": {"num_hidden_layers": 4, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048},
}
STAGES = ("masked", "matching")  # what the contrastive stage adds has a bench of its own
LENGTHS = ("real", "longest")
DEEPSPEED: dict[str, Any] = {
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 2},
    "optimizer": {"type": "Lamb", "params": {"lr": 1e-5, "betas": [0.9, 0.98], "weight_decay": 0.01}},
}
LOSS_APART, NORM_APART = 1e-4, 1e-3  # relative, in float32
SEED = 7


@dataclass(frozen=True)
class StepBench:
    """What is measured.

    Attributes:
        models: of `MODELS`.
        stages: masked, matching.
        lengths: real (queries of 8, titles of 32 words on average) and longest (every text at its limit).
        batch: samples of a step.
        turns: timed steps of each contestant.
        layers: instead of the models' own.
        changes: of MbsdConfig, other sizes.
    """

    models: tuple[str, ...]
    stages: tuple[str, ...]
    lengths: tuple[str, ...]
    batch: int
    turns: int
    layers: int | None = None
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)


def measure_step(bench: StepBench) -> dict[str, Any]:
    """Measure, print a table, and return its numbers: model → stage → lengths → contestant → number → value.

    Raises:
        UserError: an unknown model, stage or lengths.
        RuntimeError: the contestants do not compute the same loss and gradient.
    """
    for option, given, known in (
        ("--model", bench.models, MODELS),
        ("--stage", bench.stages, STAGES),
        ("--lengths", bench.lengths, LENGTHS),
    ):
        for name in given:
            if name not in known:
                raise UserError(f"{option} {name}: expected {' or '.join(known)}")
    numbers: dict[str, Any] = on_ranks(1, measure_here, bench)
    print_step(numbers)
    return numbers


class Contestants(nn.Module):
    """The steps around one model, as the one module that an engine wraps."""

    def __init__(self, config: MbsdConfig, stage: str) -> None:
        super().__init__()
        run = PretrainConfig(RunConfig("", max_steps=1), DataConfig(""), stage=stage)
        self.step = find_stage(stage).outline(run, config)
        model, self.masked = self.step.model, isinstance(find_stage(stage).needs(run).targets, Masked)
        if not self.masked:  # the head starts near "I do not know", where contestants would agree whatever they saw
            nn.init.normal_(model.match.weight, 0.0, 2.0 / math.sqrt(config.hidden_size))
        self.config = config
        self.plain = PlainModel(model)

    def inputs(self, drawn: Drawn, device: torch.device) -> dict[str, tuple[Any, ...]]:
        """What each contestant is given; on the device."""
        batch = packed(drawn, self.config).to(device)
        limit, query = LIMITS.max_text_tokens, LIMITS.max_query_tokens
        if self.masked:
            assert batch.masks is not None
            counts = [batch.masks.mlm_index_K.shape[0], batch.masks.mpm_index_Q.shape[0]]
            given: dict[str, tuple[Any, ...]] = {PACKED: (batch, torch.tensor(counts, device=device))}
            hidden_BP = torch.zeros(len(drawn.texts), self.config.num_patches, dtype=torch.bool)
            for b, rows in enumerate(drawn.patches):
                hidden_BP[b, torch.from_numpy(rows)] = True
            for name, length in ((TO_LIMIT, limit), (TO_LONGEST, None)):
                full = padded(drawn, "full", length)
                given[name] = (full, padded_labels(drawn, full.input_ids.shape[1]), hidden_BP)
        else:
            given = {
                PACKED: (batch, None),
                TO_LIMIT: tuple(padded(drawn, v, n) for v, n in (("full", limit), ("text", limit), ("image", query))),
                TO_LONGEST: tuple(padded(drawn, view, None) for view in ("full", "text", "image")),
                TOGETHER: tuple(padded(drawn, view, None) for view in ("full", "image")),
            }
            given = {name: (*x, drawn.labels_B) if name != PACKED else x for name, x in given.items()}
        return {name: tuple(_moved(x, device) for x in values) for name, values in given.items()}

    def forward(self, name: str, inputs: tuple[Any, ...]) -> Tensor:
        """The loss of one contestant."""
        if name == PACKED:
            loss: Tensor = self.step(*inputs)["loss"]
            return loss
        if self.masked:
            return self.plain.masked_loss(*inputs)
        *views, labels_B = inputs
        if name == TOGETHER:
            return self.plain.matching_loss(list(self.plain.concatenated(*views).chunk(3)), labels_B)
        return self.plain.matching_loss([self.plain.view(view) for view in views], labels_B)


def _moved(x: Any, device: torch.device) -> Any:
    if isinstance(x, Padded):
        return Padded(*(_moved(getattr(x, field.name), device) for field in dataclasses.fields(x)))
    return x.to(device) if isinstance(x, Tensor) else x


def measure_here(world: World, bench: StepBench) -> dict[str, Any]:
    """`measure_step` on the one rank of the group that is up."""
    device = world.device
    kinds = HALVES if device.type == "cuda" else ()
    precision = next((kind for kind in kinds if kind in world.precisions), "fp32")
    torch.backends.cudnn.allow_tf32 = False  # float32 is for comparing; what is timed on such GPUs is half
    peak = _matmul_peak(device, HALVES.get(precision, torch.float32))
    sheet = data_sheet_peak(device) if precision != "fp32" else None
    numbers: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads",
        "precision": precision,
        "matmul_flops": peak,
        "data_sheet_flops": sheet,
        "batch": bench.batch,
        "turns": bench.turns,
        "models": {},
    }
    for model in bench.models:
        sizes = MODELS[model] | ({"num_hidden_layers": bench.layers} if bench.layers else {}) | bench.changes
        numbers["models"][model] = found = {"layers": sizes["num_hidden_layers"], "stages": {}}
        for stage in bench.stages:
            torch.manual_seed(SEED)
            contestants = Contestants(MbsdConfig(**sizes), stage).to(device)
            drawn = {
                name: draw(contestants.config, bench.batch, masked=stage == "masked", longest=name == "longest",
                           seed=SEED)
                for name in bench.lengths
            }  # fmt: skip
            inputs = {name: contestants.inputs(samples, device) for name, samples in drawn.items()}
            checked = {name: agreement(contestants, given) for name, given in inputs.items()}
            memory = {name: _memory(contestants, given, device) for name, given in inputs.items()}
            engine = _engine(contestants, bench, precision)
            found["stages"][stage] = {}
            for name, given in inputs.items():
                batch = packed(drawn[name], contestants.config)
                flops = training_flops(contestants.config, batch) + head_flops(contestants.config, batch)
                took = _take_turns(engine, given, bench.turns, device)
                seconds = {each: statistics.median(took[each].seconds) for each in given}
                found["stages"][stage][name] = {
                    each: {
                        **checked[name][each],
                        **memory[name][each],
                        "seconds": seconds[each],
                        "samples_per_s": bench.batch / seconds[each],
                        "tokens_per_s": batch.num_tokens / seconds[each],
                        "flops_per_s": flops / seconds[each],
                        "mfu": flops / seconds[each] / peak,
                        **({"mfu_data_sheet": flops / seconds[each] / sheet} if sheet else {}),
                        "x_packed": _ratio(took[each].seconds, took[PACKED].seconds),
                        "cpu_seconds": statistics.median(took[each].cpu_seconds),
                        "cpu_x_packed": _ratio(took[each].cpu_seconds, took[PACKED].cpu_seconds),
                        **({"device_peak_bytes": took[each].peak_bytes} if device.type == "cuda" else {}),
                    }
                    for each in given
                }
            engine.destroy()
    return numbers


def _engine(contestants: Contestants, bench: StepBench, precision: str) -> Any:
    config: dict[str, Any] = {**DEEPSPEED, "train_batch_size": bench.batch}
    if precision != "fp32":
        config[precision] = {"enabled": True, **({"initial_scale_power": 8} if precision == "fp16" else {})}
    return build_engine(contestants, DeepSpeedConfig(config).resolved(1, 1000))


def agreement(contestants: Contestants, inputs: dict[str, tuple[Any, ...]]) -> dict[str, dict[str, float]]:
    """Loss and gradient norm of each contestant in float32 without dropout.

    Raises:
        RuntimeError: they are not the same.
    """
    contestants.eval()
    found = {}
    for name, given in inputs.items():
        loss = contestants(name, given)
        loss.backward()
        gradients = [p.grad for p in contestants.parameters() if p.grad is not None]
        found[name] = {"loss": loss.item(), "gradient_norm": torch.nn.utils.get_total_norm(gradients).item()}
        contestants.zero_grad()
    contestants.train()
    for name, values in found.items():
        for key, apart in (("loss", LOSS_APART), ("gradient_norm", NORM_APART)):
            expected = found[PACKED][key]
            if not abs(values[key] - expected) <= apart * abs(expected):
                raise RuntimeError(f"{name}: {key} {values[key]} is not that of the packed step, {expected}")
    return found


def _memory(
    contestants: Contestants, inputs: dict[str, tuple[Any, ...]], device: torch.device
) -> dict[str, dict[str, float]]:
    """Bytes in float32 of each contestant: kept for the backward, and the most that lives at once beside the weights
    (gradients among it).
    """
    found = {}
    for name, given in inputs.items():
        with Ledger() as ledger:
            with SavedBytes(contestants) as saved:
                loss = contestants(name, given)
            loss.backward()
            del loss
        contestants.zero_grad()
        found[name] = {"saved_bytes": float(saved.bytes), "peak_bytes": float(ledger.peak)}
    return found


@dataclass
class Took:
    """Steps of one contestant: by the clock, of this process's threads (which other work on the machine moves less),
    and the most that torch held on the GPU.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)
    peak_bytes: float = 0.0


def _take_turns(engine: Any, inputs: dict[str, tuple[Any, ...]], turns: int, device: torch.device) -> dict[str, Took]:
    """Whole steps, the contestants one after the other in each turn; a first turn is not counted."""
    took = {name: Took() for name in inputs}
    engine.train()
    for turn in range(turns + 1):
        for name, given in inputs.items():

            def step(name: str = name, given: tuple[Any, ...] = given) -> None:
                engine.backward(engine(name, given))
                engine.step()

            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            cpu = time.process_time()
            seconds = _timed(step, device)
            if turn:
                took[name].seconds.append(seconds)
                took[name].cpu_seconds.append(time.process_time() - cpu)
            if device.type == "cuda":
                took[name].peak_bytes = float(torch.cuda.max_memory_allocated(device))
    return took


def _ratio(these: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(these, others, strict=True))


def _timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of thirty large matrix products."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(_timed(lambda: a @ b, device) for _ in range(30))
