"""`mbsd bench lamb`: what a step of LAMB costs under ZeRO-2, against AdamW there and against LAMB written by hand.

The parameters are those of BERT-base with the patchify network and stage 1's heads. Two spans are timed: the
optimizer's own step on the slices and gradients that ZeRO gives it, and the engine's whole step (from reduced gradients
to new weights on every rank). The contestants take turns, each time is that of the slowest rank, and a ratio is the
median over turns of ratios within a turn.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mbsd.model.heads import MbsdForMaskedModelling
from mbsd.model.mbsd import MbsdConfig
from mbsd.optim.groups import build_optimizer, parameter_groups
from mbsd.parallel.world import World
from mbsd.tools.bench.ranks import SumOfWeights, on_ranks, seconds_of_slowest
from mbsd.tools.plan.memory import FLOAT
from mbsd.tools.plan.speed import OPTIMIZER_WORDS
from mbsd.training.engine import build_engine

LAMB, ADAMW, TEXTBOOK = "Lamb, ZeRO-2", "torch's fused AdamW, ZeRO-2", "LAMB as a loop over tensors"
WHOLE = ", engine.step()"
SETTINGS: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.01}
DEEPSPEED: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    "bf16": {"enabled": True},
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
}


@dataclass(frozen=True)
class Contestant:
    """A step that can be repeated, and the optimizer state it keeps.

    Attributes:
        prepare: sets the gradients; not timed.
        step: what is timed.
        state_bytes: bytes of this rank's optimizer state, after a step.
    """

    prepare: Callable[[], None]
    step: Callable[[], None]
    state_bytes: Callable[[], int]


def measure_lamb(ranks: tuple[int, ...], turns: int, layers: int = 12) -> dict[str, Any]:
    """Measure at each number of ranks, print a table, and return its numbers.

    Args:
        ranks: numbers of ranks.
        turns: steps of each contestant.
        layers: of the model's encoder.

    Returns:
        `ranks`: number of ranks -> contestant -> `seconds` of a step (median), `state_bytes_per_parameter` of a rank,
        and the ratios `x_adamw` and `x_textbook`, where they can be formed; of this project's LAMB the `bytes_per_s`
        that a rank reads and writes, as `mbsd plan` counts them.

    Raises:
        UserError: more ranks than this machine's GPUs, where it has any.
    """
    results = {str(world_size): on_ranks(world_size, _measure, turns, layers) for world_size in ranks}
    table = Table()
    for heading in ("ranks", "step", "ms", "x AdamW", "x loop", "state B/parameter"):
        table.add_column(heading, justify="left" if heading == "step" else "right", no_wrap=True)
    for world_size, contestants in results.items():
        for name, found in contestants.items():
            relative = [f"{found[key]:.2f}" if key in found else "" for key in ("x_adamw", "x_textbook")]
            table.add_row(
                world_size,
                name,
                f"{found['seconds'] * 1e3:.1f}",
                *relative,
                f"{found['state_bytes_per_parameter']:.2f}",
            )
    Console(width=110).print(table)  # a narrower table would cut the numbers
    return {"turns": turns, "layers": layers, "ranks": results}


def _measure(world: World, turns: int, layers: int) -> dict[str, dict[str, float]]:
    torch.manual_seed(0)

    def model() -> nn.Module:
        network: nn.Module = MbsdForMaskedModelling(MbsdConfig(num_hidden_layers=layers))
        return network.to(world.device)

    num_parameters = sum(p.numel() for p in model().parameters())
    contestants: dict[str, Contestant] = {}
    for name, engine in ((LAMB, _lamb_engine(model())), (ADAMW, _adamw_engine(model()))):
        contestants |= {name: _sharded(engine), name + WHOLE: _whole(engine)}
    if world.size == 1:
        contestants["Lamb, no ZeRO"] = _plain(model(), lambda named: build_optimizer(named, SETTINGS))
        contestants[TEXTBOOK] = _textbook(model())
        if _has_fused_lamb(world) and (fused := _fused_lamb(model())) is not None:
            contestants["DeepSpeed's FusedLamb, no ZeRO"] = fused
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns + 1):
        for name, contestant in contestants.items():
            contestant.prepare()
            took = seconds_of_slowest(contestant.step, world)
            if turn:  # the first turn allocates
                seconds[name].append(took)
    return {name: _summary(name, contestants[name], seconds, num_parameters) for name in contestants}


def _summary(
    name: str, contestant: Contestant, seconds: dict[str, list[float]], num_parameters: int
) -> dict[str, float]:
    found = {
        "seconds": statistics.median(seconds[name]),
        "state_bytes_per_parameter": contestant.state_bytes() / num_parameters,
    }
    if name == LAMB:
        found["bytes_per_s"] = OPTIMIZER_WORDS * FLOAT * num_parameters / dist.get_world_size() / found["seconds"]
    adamw = ADAMW + WHOLE if name.endswith(WHOLE) else ADAMW
    for key, other in (("x_adamw", adamw), ("x_textbook", TEXTBOOK)):
        if other in seconds and name != other and (other != TEXTBOOK or not name.endswith(WHOLE)):
            found[key] = statistics.median(a / b for a, b in zip(seconds[name], seconds[other], strict=True))
    return found


def _lamb_engine(model: nn.Module) -> Any:
    settings = {**SETTINGS, "betas": list(SETTINGS["betas"])}
    optimizer = {"optimizer": {"type": "Lamb", "params": settings}}
    return build_engine(SumOfWeights(model), {**DEEPSPEED, **optimizer})


def _adamw_engine(model: nn.Module) -> Any:
    groups = parameter_groups(model.named_parameters(), SETTINGS["weight_decay"])
    plain = [{"params": [p for _, p in group["params"]], "weight_decay": group["weight_decay"]} for group in groups]
    optimizer = torch.optim.AdamW(plain, **SETTINGS, fused=True)
    engine, *_ = deepspeed.initialize(model=SumOfWeights(model), optimizer=optimizer, config=DEEPSPEED)
    return engine


def _sharded(engine: Any) -> Contestant:
    """The optimizer's step as ZeRO makes it: group by group on this rank's slice, with a fresh gradient each time."""
    zero = engine.optimizer
    flats: list[Tensor] = zero.single_partition_of_fp32_groups
    gradients = [torch.randn_like(flat) * 1e-3 for flat in flats]

    def prepare() -> None:
        for flat, gradient in zip(flats, gradients, strict=True):
            flat.grad = gradient.clone()

    def step() -> None:
        for i in range(len(flats)):
            zero._optimizer_step(i)

    return Contestant(prepare, step, lambda: _state_bytes(zero.optimizer))


def _whole(engine: Any) -> Contestant:
    """Everything after the backward: norm, clipping, optimizer, 16-bit weights, all-gather."""

    def prepare() -> None:
        engine.backward(engine())

    return Contestant(prepare, engine.step, lambda: _state_bytes(engine.optimizer.optimizer))


def _plain(model: nn.Module, make: Callable[[Any], torch.optim.Optimizer]) -> Contestant:
    """An optimizer on ordinary parameters, without an engine."""
    optimizer = make(list(model.named_parameters()))

    def step() -> None:
        optimizer.step()

    return Contestant(_gradients_of(model), step, lambda: _state_bytes(optimizer))


def _textbook(model: nn.Module) -> Contestant:
    """LAMB as it is usually written: a loop over tensors, one torch operation at a time."""
    decayed = {id(p) for _, p in parameter_groups(model.named_parameters(), 0.0)[0]["params"]}
    parameters = [p for p in model.parameters() if p.requires_grad]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    (beta1, beta2), eps, lr, weight_decay = (SETTINGS[key] for key in ("betas", "eps", "lr", "weight_decay"))
    steps = 0

    @torch.no_grad()
    def step() -> None:
        nonlocal steps
        steps += 1
        for p, (m, v) in zip(parameters, moments, strict=True):
            assert p.grad is not None
            m.mul_(beta1).add_(p.grad, alpha=1 - beta1)
            v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            update = (m / (1 - beta1**steps)) / ((v / (1 - beta2**steps)).sqrt() + eps)
            ratio: Tensor | float = 1.0
            if id(p) in decayed:
                update = update + weight_decay * p
                w_norm, u_norm = p.norm(), update.norm()
                ratio = torch.where((w_norm > 0) & (u_norm > 0), w_norm / u_norm, torch.ones_like(w_norm))
            p.sub_(lr * ratio * update)

    return Contestant(_gradients_of(model), step, lambda: sum(m.nbytes + v.nbytes for m, v in moments))


def _has_fused_lamb(world: World) -> bool:
    """Whether this machine has DeepSpeed's CUDA kernel or can compile it; if not, DeepSpeed prints the reason."""
    from deepspeed.ops.op_builder import FusedLambBuilder

    if world.device.type == "cuda":  # for this GPU; DeepSpeed 0.19 cannot read an architecture with a letter, as 9.0a
        os.environ["TORCH_CUDA_ARCH_LIST"] = "{}.{}".format(*torch.cuda.get_device_capability(world.device))
    return world.device.type == "cuda" and bool(FusedLambBuilder().is_compatible(verbose=True))


def _fused_lamb(model: nn.Module) -> Contestant | None:
    """DeepSpeed's own LAMB; None where its kernel does not compile here, which is printed."""
    from deepspeed.ops.lamb import FusedLamb

    try:
        return _plain(model, lambda named: FusedLamb([p for _, p in named], **SETTINGS))
    except (RuntimeError, subprocess.CalledProcessError) as error:  # of torch's compiler of extensions
        print(f"DeepSpeed's FusedLamb is left out: {str(error).splitlines()[0]}", file=sys.stderr)
        return None


def _gradients_of(model: nn.Module) -> Callable[[], None]:
    def prepare() -> None:
        for p in model.parameters():
            if p.grad is None:  # no contestant writes into its gradients, so they are made once
                p.grad = torch.randn_like(p) * 1e-3

    return prepare


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    return sum(
        value.nbytes for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
    )
