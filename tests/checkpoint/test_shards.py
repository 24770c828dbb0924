"""Masters and moments find their way from any layout of DeepSpeed's to any other, element by element."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.optim.textbook import STEPS, Tiny
from tests.ranks import call

pytestmark = pytest.mark.distributed

ROUND_ROBIN = {"stage": 2, "round_robin_gradients": True}
# name → (zero_optimization, ranks); `Tiny` has a group of one element, so that ranks own nothing but padding.
LAYOUTS: dict[str, tuple[dict[str, Any], int]] = {
    "2 on 3": ({"stage": 2}, 3),
    "2 on 2, round robin": (ROUND_ROBIN, 2),
    "2 on 2, aligned": ({"stage": 2, "parameter_alignment": True}, 2),
    "1 on 1": ({"stage": 1}, 1),
    "0 on 2": ({"stage": 0}, 2),
}
ADAMW = ("2 on 3", "0 on 2")  # written with AdamW too


def same_gradients(engine: Any, steps: range) -> None:
    """Every rank has the same gradients, so that the number of ranks does not matter."""
    from tests.optim.test_zero import given_gradients, learning_rate

    for step in steps:
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate(step)
        engine.backward(engine(given_gradients(engine.module, step, 0, 0)))
        engine.step()


def begin(zero: dict[str, Any], optimizer: str, seed: int) -> Any:
    import deepspeed

    from mbsd.optim.groups import parameter_groups
    from mbsd.optim.zero import bind
    from tests.optim.test_zero import build_engine, make_optimizer

    module = Tiny(seed)
    if optimizer == "Lamb":
        lamb = make_optimizer(module, adapt_excluded=True)
        engine = build_engine(module, lamb, zero)
        bind(lamb, engine.optimizer)
        return engine
    groups = [{"params": g["params"], "weight_decay": 0.01} for g in parameter_groups(module.named_parameters(), 0.01)]
    adamw = {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}}
    for group in groups:
        group["params"] = [p for _, p in group["params"]]
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, "optimizer": adamw}
    engine, *_ = deepspeed.initialize(model=module, model_parameters=groups, config=config)
    return engine


def write(rank: int, world_size: int, folder: Path) -> None:
    """Half the steps in each layout of this number of ranks, saved; and on one rank all of them, as the reference."""
    from mbsd.checkpoint.flat_layout import read_layout
    from mbsd.checkpoint.host_buffer import HostBuffer
    from mbsd.checkpoint.shards import file_name, scalars_of, tensors_of

    for optimizer in ("Lamb", "AdamW"):
        for name, (zero, ranks) in LAYOUTS.items():
            if ranks != world_size or (optimizer == "AdamW" and name not in ADAMW):
                continue
            engine = begin(zero, optimizer, seed=0)
            same_gradients(engine, range(STEPS // 2))
            layout = read_layout(engine)
            tensors = tensors_of(engine, layout, rank)
            image = HostBuffer(tensors, {}, pinned=False)
            image.fill(tensors)
            out = folder / f"{optimizer}, {name}"
            out.mkdir(exist_ok=True)
            (out / f"{file_name(rank)}.safetensors").write_bytes(image.view())
            (out / f"{file_name(rank)}.json").write_text(json.dumps({"flats": scalars_of(engine, layout)}))
            same_gradients(engine, range(STEPS // 2, STEPS))
            if rank == 0:
                torch.save(engine.module.state_dict(), out / "end.pt")
            engine.destroy()


def read(rank: int, world_size: int, folder: Path) -> None:
    """Go on from every folder in every layout of this number of ranks, from other weights; all end the same."""
    from mbsd.checkpoint.flat_layout import read_layout, write_back
    from mbsd.checkpoint.shards import Shards, load_frozen

    for saved in sorted(folder.iterdir()):
        expected = torch.load(saved / "end.pt")
        files = sorted(saved.glob("state-*.json"))
        for name, (zero, ranks) in LAYOUTS.items():
            if ranks != world_size:
                continue
            engine = begin(zero, saved.name.split(",")[0], seed=1)
            layout = read_layout(engine)
            Shards(saved, list(range(len(files)))).load(engine, layout)
            write_back(engine, layout)
            load_frozen(saved, engine, layout, here=rank == 0)
            same_gradients(engine, range(STEPS // 2, STEPS))
            for key, value in engine.module.state_dict().items():
                torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-7, msg=f"{saved.name} -> {name}")
            engine.destroy()


def test_every_layout_reads_every_other(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    for ranks in (1, 2, 3):
        call(write, ranks, tmp_path / "saved")
    assert len(list((tmp_path / "saved").iterdir())) == len(LAYOUTS) + len(ADAMW)
    for ranks in (1, 2, 3):
        call(read, ranks, tmp_path / "saved")
