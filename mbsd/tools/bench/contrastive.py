"""`mbsd bench contrastive`: the contrastive loss against a plain one, and the memory of a step of two passes.

Both losses are given the same vectors of complete rows, a tenth of them of the product of another row, and make the
whole way: gathering, loss and gradients. Before anything is timed they have to agree. Then they take turns, each time
is that of the slowest rank, and a ratio is the median over turns of ratios within a turn. The plain loss holds matrices
of all rows times all rows; where those would not fit into the memory that is free, it is left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from mbsd.errors import UserError
from mbsd.objectives.contrastive import Rule
from mbsd.parallel.world import World
from mbsd.stages.global_batch import Vectors, solve
from mbsd.tools.bench.contrastive_passes import MICRO_STEPS, measure_passes
from mbsd.tools.bench.contrastive_plain import Answer, plain_answer, require_same
from mbsd.tools.bench.peak import peak_bytes, tensors_have_pages
from mbsd.tools.bench.ranks import on_ranks, seconds_of_slowest

IN_CHUNKS, PLAIN = "in chunks", "plain"
PLAIN_BYTES = 48  # a pair of rows, before a smaller batch has shown how many: about twelve float32 matrices
FREE_SHARE = 0.8  # of the free memory is used
SCALE, BIAS = 1 / 0.07, -10.0
MIB = 1 << 20


@dataclass(frozen=True)
class ContrastiveBench:
    """What is measured.

    Attributes:
        rows: of global batches.
        ranks: numbers of ranks.
        loss, targets, chunk: of `Rule`.
        dim: numbers of a vector.
        turns: timed turns of each loss.
        micro_batch: samples a micro-batch of the step of two passes; 0: it is left out.
    """

    rows: tuple[int, ...]
    ranks: tuple[int, ...]
    loss: Any = "softmax"
    targets: Any = "shared"
    dim: int = 512
    chunk: int = 1024
    turns: int = 3
    micro_batch: int = 8

    @property
    def rule(self) -> Rule:
        """Of the loss."""
        return Rule(self.loss, self.targets, self.chunk)


def measure_contrastive(bench: ContrastiveBench) -> dict[str, Any]:
    """Measure, print tables, and return their numbers.

    Returns:
        `ranks`: number of ranks -> number of rows -> `apart`, the largest relative difference of value and gradients
        (where both ran), and loss -> `seconds` (median), `peak_bytes` of a rank beyond its own vectors; of the one in
        chunks `x_plain`. `passes`: as `measure_passes` returns it, or None.

    Raises:
        UserError: an unknown loss or targets, or rows that ranks cannot share.
        RuntimeError: the losses do not agree.
    """
    for option, given, known in (
        ("--loss", bench.loss, ("softmax", "sigmoid")),
        ("--targets", bench.targets, ("shared", "masked", "own")),
    ):
        if given not in known:
            raise UserError(f"{option} {given}: expected {' or '.join(known)}")
    for world_size in bench.ranks:
        for num in bench.rows:
            if num % world_size:
                raise UserError(f"--rows {num}: --ranks {world_size} cannot have equally many; choose a multiple")
    with tensors_have_pages():
        peaks = {world_size: on_ranks(world_size, measure_memory, bench) for world_size in bench.ranks}
        passes = on_ranks(1, measure_passes, bench.micro_batch, bench.rule) if bench.micro_batch else None
    ranks = {
        str(world_size): on_ranks(world_size, measure_losses, bench, peaks[world_size]) for world_size in bench.ranks
    }
    _print_losses(ranks, bench)
    if passes is not None:
        _print_passes(passes)
    return {"turns": bench.turns, "dim": bench.dim, "chunk": bench.chunk, "ranks": ranks, "passes": passes}


def measure_memory(world: World, bench: ContrastiveBench) -> dict[int, dict[str, int]]:
    """Number of rows -> loss -> most bytes of this rank, of the losses that fit (collective)."""
    peaks: dict[int, dict[str, int]] = {}
    plain_bytes = float(PLAIN_BYTES)
    for num in sorted(bench.rows):
        losses = _losses(draw_vectors(num, bench.dim, world), bench.rule)
        if not _fits(plain_bytes * num * num, world):
            del losses[PLAIN]
        for loss in losses.values():
            if num == min(bench.rows):
                loss()  # what libraries hold from their first use on is not the loss's
        peaks[num] = {name: peak_bytes(loss, world.device) for name, loss in losses.items()}
        if PLAIN in losses:
            plain_bytes = peaks[num][PLAIN] / (num * num)
    return peaks


def measure_losses(
    world: World, bench: ContrastiveBench, peaks: dict[int, dict[str, int]]
) -> dict[str, dict[str, Any]]:
    """Number of rows -> what `measure_contrastive` says, on the ranks of the group that is up (collective).

    Args:
        peaks: as `measure_memory` returns them; losses that are missing there are left out.
    """
    numbers = {}
    for num in bench.rows:
        every = _losses(draw_vectors(num, bench.dim, world), bench.rule)
        losses = {name: every[name] for name in peaks[num]}
        answers = [loss() for loss in losses.values()]
        apart = require_same(*answers) if len(answers) > 1 else None
        del answers
        took: dict[str, list[float]] = {name: [] for name in losses}
        for _ in range(bench.turns):
            for name, loss in losses.items():
                took[name].append(seconds_of_slowest(loss, world))
        found: dict[str, Any] = {
            name: {"seconds": statistics.median(took[name]), "peak_bytes": peaks[num][name]} for name in losses
        }
        if PLAIN in losses:
            ratios = [ours / plain for ours, plain in zip(took[IN_CHUNKS], took[PLAIN], strict=True)]
            found[IN_CHUNKS]["x_plain"] = statistics.median(ratios)
            found["apart"] = apart
        numbers[str(num)] = found
    return numbers


def _losses(mine: Vectors, rule: Rule) -> dict[str, Callable[[], Answer]]:
    return {
        IN_CHUNKS: partial(answer_in_chunks, mine, rule),
        PLAIN: partial(plain_answer, mine, *_log_scale_and_bias(mine), rule),
    }


def answer_in_chunks(mine: Vectors, rule: Rule) -> Answer:
    """What the stage does after the forward (collective)."""
    log_scale, bias = _log_scale_and_bias(mine)
    solved = solve(
        mine.of_all_ranks(dist.get_rank(), dist.get_world_size()),
        log_scale.exp(),
        bias if rule.loss == "sigmoid" else None,
        rule,
    )
    loss = solved.values["loss"]
    return Answer(loss, solved.image_nE, solved.text_nE, solved.log_scale[None], solved.bias[None])


def _log_scale_and_bias(mine: Vectors) -> tuple[torch.Tensor, torch.Tensor]:
    return mine.image_nE.new_tensor([SCALE]).log(), mine.image_nE.new_tensor([BIAS])


def draw_vectors(num: int, dim: int, world: World) -> Vectors:
    """This rank's of `num` rows: titles near their pictures, keys of three kinds."""
    generator = torch.Generator().manual_seed(num)
    image_NE = torch.randn(num, dim, generator=generator)
    text_NE = image_NE + torch.randn(num, dim, generator=generator)
    keys_NK = torch.stack([torch.randint(0, 30 * num, (num,), generator=generator) for _ in range(3)], 1)
    own = slice(world.rank * num // world.size, (world.rank + 1) * num // world.size)
    vectors = (F.normalize(x_NE[own], dim=1) for x_NE in (image_NE, text_NE))
    has = torch.ones(num // world.size, dtype=torch.bool)
    return Vectors(*(x.to(world.device) for x in (*vectors, keys_NK[own], has, has)))


def _fits(num_bytes: float, world: World) -> bool:
    """Whether the ranks of this machine, each with so many bytes, have room on all of them (collective)."""
    if world.device.type == "cuda":
        free = torch.cuda.mem_get_info(world.device)[0]
    else:
        free = psutil.virtual_memory().available // world.size
    fits = torch.tensor(num_bytes < FREE_SHARE * free, dtype=torch.int32, device=world.device)
    dist.all_reduce(fits, op=dist.ReduceOp.MIN)
    return bool(fits)


def _print_losses(ranks: dict[str, Any], bench: ContrastiveBench) -> None:
    table = Table(title=f"{bench.loss}, {bench.targets}, {bench.dim} numbers a vector, {bench.chunk} rows at a time")
    for heading in ("ranks", "rows", "ms", "plain ms", "x plain", "peak MiB", "plain MiB", "apart"):
        table.add_column(heading, justify="right", no_wrap=True)
    for world_size, of_rows in ranks.items():
        for num, found in of_rows.items():
            ours, plain = found[IN_CHUNKS], found.get(PLAIN)
            table.add_row(
                world_size, f"{int(num):,}", f"{ours['seconds'] * 1e3:,.0f}",
                f"{plain['seconds'] * 1e3:,.0f}" if plain else "does not fit",
                f"{ours['x_plain']:.2f}" if plain else "", f"{ours['peak_bytes'] / MIB:,.0f}",
                f"{plain['peak_bytes'] / MIB:,.0f}" if plain else "", f"{found['apart']:.0e}" if plain else "",
            )  # fmt: skip
    Console(width=110).print(table)  # a narrower table would cut the numbers


def _print_passes(passes: dict[str, dict[str, float]]) -> None:
    table = Table(title=f"a step of one micro-batch, and one of two passes over {MICRO_STEPS}")
    for heading in ("micro-steps", "samples", "MiB beyond weights and gradients", "MiB with them", "x one micro-step"):
        table.add_column(heading, justify="right", no_wrap=True)
    for micro_steps, found in passes.items():
        step, whole = found["step_bytes"], found["step_bytes"] + found["held_bytes"]
        table.add_row(
            micro_steps, f"{found['samples']:.0f}", f"{step / MIB:,.0f}", f"{whole / MIB:,.0f}", f"{found['x_one']:.3f}"
        )
    Console(width=110).print(table)
