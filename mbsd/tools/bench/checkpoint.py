"""`mbsd bench checkpoint`: what a save costs a training run, against DeepSpeed's plain `save_checkpoint`.

The model is BERT-base with the patchify network and the stage-1 heads under ZeRO-2 and LAMB, at several numbers of
ranks. Both kinds of saves alternate in one process on one file system, each after `sync`. Each time is that of the
slowest rank, and medians are reported. DeepSpeed's stall is its whole save, which it does not sync to disk. Ours is the
copy to host memory, and the time to durable ends when every file is synced, checksummed and published.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from mbsd.checkpoint.claim import Claim
from mbsd.checkpoint.manager import CheckpointManager, SavedParts
from mbsd.checkpoint.resume import take_over
from mbsd.checkpoint.storage import probe
from mbsd.checkpoint.store import Keep
from mbsd.config.deepspeed import DeepSpeedConfig
from mbsd.config.model import ModelConfig
from mbsd.data.text import build_tokenizer, load_tokenizer
from mbsd.model.heads import MbsdForMaskedModelling
from mbsd.model.mbsd import MbsdConfig
from mbsd.parallel.world import on_rank_zero
from mbsd.tools.bench.ranks import SumOfWeights, on_ranks

ROWS = (
    ("stall, s", "stall_s"), ("first stall, s", "first_stall_s"), ("DeepSpeed's save, s", "plain_s"),
    ("stall / DeepSpeed's save", "stall_ratio"), ("time to durable, s", "durable_s"), ("bytes, MB", "megabytes"),
    ("DeepSpeed's bytes, MB", "plain_megabytes"), ("time to resume, s", "resume_s"),
    ("DeepSpeed's load, s", "plain_load_s"),
)  # fmt: skip


def measure_checkpoint(ranks: tuple[int, ...], saves: int, folder: Path | None, layers: int = 12) -> dict[str, Any]:
    """Run the measurement at each number of ranks, print a table, and return its numbers.

    Args:
        ranks: numbers of ranks.
        saves: of each kind.
        folder: in which checkpoints are written, and removed again; None: the system's temporary folder.
        layers: of the model's encoder.

    Returns:
        `ranks`: number of ranks -> key of `ROWS` -> seconds, megabytes or ratio.

    Raises:
        UserError: more ranks than this machine's GPUs, where it has any.
    """
    results = {}
    for world_size in ranks:
        with tempfile.TemporaryDirectory(dir=folder, prefix="mbsd-bench-") as scratch:
            results[str(world_size)] = on_ranks(world_size, _measure, saves, Path(scratch), layers)
    table = Table("", *(f"{world_size} ranks" for world_size in results))
    for title, key in ROWS:
        table.add_row(title, *(f"{result[key]:.3f}" for result in results.values()))
    Console(soft_wrap=True).print(table)
    return {"saves": saves, "layers": layers, "ranks": results}


def _measure(world: Any, saves: int, scratch: Path, layers: int) -> dict[str, float]:
    engine, model, tokenizer = _engine(world, scratch, layers)
    run = scratch / "run"
    storage = probe(run / "checkpoints", world, node_local=False)
    token, _ = take_over(run, storage, world, {}, print)
    parts = SavedParts(model, tokenizer, facts={"identity": {}}, texts={})
    manager = CheckpointManager(Claim(run, world, storage, token), engine, parts, Keep(last=1), say=lambda text: None)

    def seconds(action: Callable[[], object]) -> float:
        """Seconds that the slowest rank needs for `action`, from a barrier after the last writes are on disk."""
        if world.is_first:
            os.sync()
        dist.barrier()
        began = time.perf_counter()
        action()
        took = torch.tensor(time.perf_counter() - began, dtype=torch.float64, device=world.device)
        dist.all_reduce(took, op=dist.ReduceOp.MAX)
        return float(took)

    manager.prepare()  # as a run does after its first logged step
    stalls, durables, plains = [], [], []
    for step in range(1, saves + 1):
        plains.append(seconds(lambda: engine.save_checkpoint(str(scratch / "plain"), tag="tag", save_latest=False)))
        began = time.perf_counter()
        state = {"step": step, "loader": {}, "selection": None}
        stalls.append(seconds(lambda at=state: manager.save(at)))  # type: ignore[misc]
        manager.wait()
        durables.append(time.perf_counter() - began)
    plain_bytes = sum(path.stat().st_size for path in (scratch / "plain").rglob("*") if path.is_file())
    own_bytes = sum(path.stat().st_size for path in storage.root.glob("step-*/**/*") if path.is_file())
    loads = [
        seconds(lambda: engine.load_checkpoint(str(scratch / "plain"), tag="tag", load_module_strict=True)),
        seconds(lambda: manager.load(_found(run, storage, world))),
    ]
    dist.barrier()
    if world.is_first:
        shutil.rmtree(scratch / "plain")
    stall, plain = statistics.median(stalls), statistics.median(plains)
    return {
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "stall_s": stall,
        "first_stall_s": stalls[0],
        "plain_s": plain,
        "stall_ratio": stall / plain,
        "durable_s": statistics.median(durables),
        "megabytes": own_bytes / 1e6,
        "plain_megabytes": plain_bytes / 1e6,
        "resume_s": loads[1],
        "plain_load_s": loads[0],
    }


def _found(run: Path, storage: Any, world: Any) -> Any:
    _, found = take_over(run, storage, world, {}, print)
    return found


def _engine(world: Any, scratch: Path, layers: int) -> tuple[Any, Any, Any]:
    """An engine after one step, so that the optimizer's moments exist and are saved, with its model and tokenizer."""
    from mbsd.training.engine import build_engine  # late: deepspeed chooses its device when it is imported

    on_rank_zero(lambda: str(build_tokenizer(["one two three"], 32, scratch / "words").name_or_path))
    torch.manual_seed(0)
    model: Any = MbsdForMaskedModelling(MbsdConfig(vocab_size=ModelConfig().vocab_size, num_hidden_layers=layers))
    config: dict[str, Any] = {
        "train_batch_size": world.size,
        "zero_optimization": {"stage": 2},
        "optimizer": {"type": "Lamb", "params": {"lr": 1e-4}},
    }
    if world.device.type == "cuda":
        config["bf16"] = {"enabled": True}
    engine = build_engine(SumOfWeights(model), DeepSpeedConfig(config).resolved(world.size, 10))
    engine.backward(engine())
    engine.step()
    return engine, model, load_tokenizer(str(scratch / "words"))
