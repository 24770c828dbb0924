"""A plan as tables for people, and as JSON for programs."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console
from rich.table import Table

from mbsd.tools.plan.plan import GIB, Plan


def as_json(plan: Plan) -> dict[str, Any]:
    """All numbers of the tables, and the advice; in bytes, seconds and FLOPs."""
    derived = ("fits", "samples_per_s", "days", "gpu_hours")
    values = dataclasses.asdict(plan) | {name: getattr(plan, name) for name in derived}
    values["memory"]["total"] = plan.memory.total
    values["speed"]["step"] = plan.speed.step
    return values


def print_plan(plan: Plan, title: str, console: Console | None = None) -> None:
    """Print four tables (run, memory, work, time), the advice, and what was measured and what is assumed."""
    console = console or Console(soft_wrap=True)
    for table in (_run(plan, title), _memory(plan), _work(plan), _time(plan)):
        console.print(table)
    for line in plan.advice:
        console.print(f"knob: {line}", highlight=False)
    for line in plan.shares.described():
        console.print(line, style="dim", highlight=False)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", min_width=78)
    for n, heading in enumerate(headings):
        table.add_column(heading, justify="right" if n == 1 else "left")
    return table


def _run(plan: Plan, title: str) -> Table:
    sizes, nodes = plan.sizes, "1 node" if plan.nodes == 1 else f"{plan.nodes} nodes"
    table = _table(title, "run", "", "")
    table.add_row(
        "GPUs",
        f"{plan.gpus}",
        f"{plan.gpu.name}, {nodes}, {8 * plan.network / 1e9:g} Gbit/s each",
    )
    table.add_row("parameters", f"{plan.parameters / 1e6:.1f} M", f"{plan.trained / 1e6:.1f} M trained; {plan.model}")
    table.add_row(
        "batch", f"{sizes.global_batch:,}",
        f"{plan.gpus} GPUs x {sizes.accumulation} x {sizes.micro_batch}; ZeRO-{plan.stage}, {plan.precision}",
    )  # fmt: skip
    table.add_row("learning rate", f"{plan.peak_lr:g}", f"the highest; {plan.optimizer}")
    table.add_row(
        "steps", f"{plan.steps:,}" if plan.steps is not None else "?",
        f"{plan.samples:,} samples" if plan.samples is not None else "no catalogue there: give --samples",
    )  # fmt: skip
    return table


def _memory(plan: Plan) -> Table:
    memory, engine = plan.memory, plan.memory.engine
    table = _table("", "memory of one GPU", "GiB", "")
    rows = [
        ("weights", engine.weights, plan.precision),
        ("gradients", engine.gradients, f"this rank's, ZeRO-{plan.stage}"),
        ("optimizer slices", engine.optimizer, "float32 masters, two moments"),
        ("activations", memory.activations, f"of {plan.sizes.micro_batch} samples, kept for the backward"),
        ("working memory", memory.working + engine.reducing, "largest temporaries, reduction buffers; in the backward"),
        ("the optimizer's step", engine.step, "gradients in float32; when activations are gone"),
        ("pictures, DALI", memory.pictures, "pixels and decoder buffers"),
        ("reserve", memory.reserve, "CUDA, NCCL, gaps of the allocator: assumed"),
    ]
    if memory.loss:
        beside = "beside the activations" if memory.loss_beside else "between the two passes"
        rows[-2:-2] = [
            ("vectors", memory.vectors, "of the global batch, their gradients"),
            ("loss of the global batch", memory.loss, f"chunks of similarities; {beside}"),
        ]
    for name, size, what in rows:
        table.add_row(name, f"{size / GIB:.2f}", what)
    table.add_section()
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    table.add_row("fullest moment", f"{memory.total / GIB:.2f}", f"of {plan.gpu.memory / GIB:.1f}: {verdict}")
    largest = f"{plan.largest_micro_batch}" if plan.largest_micro_batch else "none"
    table.add_row("largest micro-batch", largest, "that fits and divides the batch of a GPU")
    return table


def _work(plan: Plan) -> Table:
    flops = plan.flops
    table = _table("", "work of one sample", "GFLOPs", "")
    table.add_row("packed", f"{flops.packed / 1e9:.1f}", f"{flops.tokens:.0f} tokens, no padding")
    table.add_row(
        "padded", f"{flops.padded / 1e9:.1f}",
        f"{flops.padded_tokens:.0f} tokens: views alone, to the longest; {flops.padded / flops.packed:.2f} x packed",
    )  # fmt: skip
    table.add_row(
        "as released", f"{flops.released / 1e9:.1f}", f"every text to its limit; {flops.released / flops.packed:.2f} x"
    )
    return table


def _time(plan: Plan) -> Table:
    speed = plan.speed
    table = _table("", "time of one step", "s", "")
    table.add_row("forward, backward", f"{speed.compute:.3f}", f"{plan.sizes.accumulation} micro-steps")
    if speed.encoding:
        table.add_row("first pass", f"{speed.encoding:.3f}", "each micro-batch once more, without graph")
    if speed.loss:
        table.add_row("gather vectors", f"{speed.exchange:.3f}", f"{_size(speed.exchange_bytes)} a GPU")
        table.add_row("loss", f"{speed.loss:.3f}", f"of {plan.sizes.global_batch:,} {plan.unit}, in float32")
    table.add_row(
        "reduce gradients",
        f"{speed.reduce:.3f}",
        f"{_size(speed.reduce_bytes)} a GPU; {speed.exposed:.3f} s waited for",
    )
    table.add_row("optimizer", f"{speed.optimizer:.3f}", "of one slice")
    table.add_row("gather weights", f"{speed.gather:.3f}", f"{_size(speed.gather_bytes)} a GPU")
    table.add_section()
    rate, tokens = plan.samples_per_s, plan.samples_per_s * plan.flops.tokens
    table.add_row("step", f"{speed.step:.3f}", f"{rate:,.0f} {plan.unit}/s, {tokens:,.0f} tokens/s, MFU {plan.mfu:.0%}")
    hours = plan.gpus * 1e6 / plan.samples_per_s / 3600
    table.add_row(f"a million {plan.unit}", f"{1e6 / plan.samples_per_s:,.0f}", f"{hours:.2f} GPU-hours")
    if plan.days is not None and plan.gpu_hours is not None:
        table.add_row(
            "the whole run", f"{plan.days * 86400:,.0f}", f"{plan.days:.2f} days, {plan.gpu_hours:,.0f} GPU-hours"
        )
    return table


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
