"""`mbsd bench step`: its contestants compute the same loss and gradient, and one that does not is found out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mbsd.errors import UserError
from mbsd.model.mbsd import MbsdConfig
from mbsd.parallel.world import World
from mbsd.tools.bench.step import (
    PACKED,
    TO_LIMIT,
    TO_LONGEST,
    TOGETHER,
    Contestants,
    StepBench,
    agreement,
    measure_here,
    measure_step,
)
from mbsd.tools.bench.step_batches import draw, packed
from mbsd.tools.bench.step_report import print_step
from tests.model.reference import randomise
from tests.ranks import call

TINY = {
    "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "image_size": 64, "patchify_channels": (6, 8, 12),
}  # fmt: skip


@pytest.mark.parametrize("lengths", ["real", "longest"])
@pytest.mark.parametrize("stage", ["masked", "matching"])
def test_contestants_agree(stage: str, lengths: str) -> None:
    torch.manual_seed(1)
    contestants = Contestants(MbsdConfig(**TINY), stage)
    randomise(contestants.step, seed=2)
    own = {id(p) for p in contestants.step.parameters()}
    assert {id(p) for p in contestants.plain.parameters()} == own, "one set of weights"
    drawn = draw(contestants.config, 5, masked=stage == "masked", longest=lengths == "longest", seed=3)
    inputs = contestants.inputs(drawn, torch.device("cpu"))
    found = agreement(contestants, inputs)
    assert list(found) == [PACKED, TO_LIMIT, TO_LONGEST, *([TOGETHER] if stage == "matching" else [])]
    assert found[PACKED]["gradient_norm"] > 1e-3
    others = draw(contestants.config, 5, masked=stage == "masked", longest=lengths == "longest", seed=4)
    inputs[TO_LONGEST] = contestants.inputs(others, torch.device("cpu"))[TO_LONGEST]
    with pytest.raises(RuntimeError, match="to the longest: "):
        agreement(contestants, inputs)


def test_lengths_are_those_that_are_told() -> None:
    config = MbsdConfig(**TINY)
    drawn = draw(config, 4000, masked=False, longest=False, seed=1)
    queries = np.array([text.num_query - 2 for text in drawn.texts])
    titles = np.array([len(text.input_ids) - text.num_query - 1 for text in drawn.texts])
    assert queries.mean() == pytest.approx(8, abs=0.2) and titles.mean() == pytest.approx(32, abs=1)
    assert queries.min() >= 1 and titles.min() >= 1 and max(len(text.input_ids) for text in drawn.texts) <= 144
    longest = packed(draw(config, 3, masked=False, longest=True, seed=1), config)
    assert longest.views.lengths == (148,) * 3 + (144,) * 3 + (68,) * 3


def measured(rank: int, world_size: int, bench: StepBench) -> dict[str, Any]:
    return measure_here(World(rank, world_size, rank, torch.device("cpu")), bench)


@pytest.mark.distributed
def test_a_table_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    bench = StepBench(("base",), ("masked", "matching"), ("real",), 2, 1, 1, {**TINY, "num_hidden_layers": 1})
    (numbers,) = call(measured, 1, bench)
    print_step(numbers)
    printed = capsys.readouterr().out
    assert all(printed.count(name) == 2 for name in (TO_LIMIT, TO_LONGEST)) and printed.count(TOGETHER) == 1
    assert numbers["precision"] == "fp32" and numbers["matmul_flops"] > 0 and numbers["batch"] == 2
    stages = numbers["models"]["base"]["stages"]
    assert [len(stages[stage]["real"]) for stage in ("masked", "matching")] == [3, 4]
    for contestants in (stages["masked"]["real"], stages["matching"]["real"]):
        ours = contestants[PACKED]
        assert ours["x_packed"] == 1 and ours["samples_per_s"] == pytest.approx(2 / ours["seconds"])
        assert ours["mfu"] == pytest.approx(ours["flops_per_s"] / numbers["matmul_flops"])
        assert ours["cpu_x_packed"] == 1 and ours["cpu_seconds"] > 0
        assert ours["tokens_per_s"] > 60 * ours["samples_per_s"] / 2
        for found in contestants.values():
            assert found["peak_bytes"] > found["saved_bytes"] > 0
            assert found["flops_per_s"] * found["seconds"] == pytest.approx(ours["flops_per_s"] * ours["seconds"])
        assert contestants[TO_LIMIT]["saved_bytes"] > 1.5 * ours["saved_bytes"]


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(UserError, match="--stage both: expected masked or matching"):
        measure_step(StepBench(("base",), ("both",), ("real",), 2, 1))
