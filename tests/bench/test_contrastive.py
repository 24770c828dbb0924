"""`mbsd bench contrastive`: its two losses are the same loss, one that is not is found out, and memory is measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from mbsd.errors import UserError
from mbsd.objectives.contrastive import Rule
from mbsd.parallel.world import World
from mbsd.tools.bench.contrastive import (
    IN_CHUNKS,
    PLAIN,
    ContrastiveBench,
    answer_in_chunks,
    draw_vectors,
    measure_contrastive,
    measure_losses,
    measure_memory,
)
from mbsd.tools.bench.contrastive_passes import MICRO_STEPS, measure_passes
from mbsd.tools.bench.contrastive_plain import plain_answer, require_same
from mbsd.tools.bench.peak import peak_bytes
from tests.ranks import call, command

pytestmark = pytest.mark.distributed
CPU = torch.device("cpu")
RULES = [Rule(loss, targets, chunk=20) for loss in ("softmax", "sigmoid") for targets in ("shared", "masked", "own")]
TINY = {
    "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "image_size": 64, "patchify_channels": (6, 8, 12),
}  # fmt: skip


def agreements(rank: int, world_size: int) -> list[tuple[str, float]]:
    """How far the losses are apart, for each rule; and what is said of faults."""
    world = World(rank, world_size, 0, CPU)
    mine = draw_vectors(64, 8, world)
    log_scale, bias = torch.tensor([1 / 0.07]).log(), torch.tensor([-10.0])
    found = []
    for rule in RULES:
        answer = answer_in_chunks(mine, rule)
        plain = plain_answer(mine, log_scale, bias, rule)
        found.append(("", require_same(answer, plain)))
        other = replace(rule, targets="own" if rule.targets == "shared" else "shared")
        faults = {
            "other targets": answer_in_chunks(mine, other),
            "a gradient a tenth of a percent too large": replace(answer, text_nE=answer.text_nE * 1.001),
            "a gradient lost": replace(answer, log_scale=torch.zeros(1)),
            "no number": replace(answer, image_nE=answer.image_nE * torch.nan),
        }
        for name, fault in faults.items():
            try:
                require_same(fault, plain)
            except RuntimeError as error:
                found.append((str(error), 1.0))
            else:
                raise AssertionError(f"{rule}: {name} went through")
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_losses_agree_and_a_broken_one_is_found_out(ranks: int) -> None:
    for found in call(agreements, ranks):
        assert len(found) == 5 * len(RULES)
        assert all(apart < 1e-5 for message, apart in found if not message)
        messages = [message for message, _ in found if message]
        assert any("differ in loss by" in message for message in messages)
        assert sum("differ in text_nE by 1.0" in message for message in messages) == len(RULES)
        assert sum("differ in log_scale by 1.00e+00" in message for message in messages) == len(RULES)
        assert sum("differ in image_nE by nan" in message for message in messages) == len(RULES)


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "c.json"
    done = command(
        "bench", "contrastive", "--rows", 64, "--rows", 1024, "--ranks", 2, "--dim", 16, "--chunk", 32,
        "--turns", 1, "--micro-batch", 0, "--json", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "x plain" in done.stdout
    numbers = json.loads(out.read_text())
    assert numbers["passes"] is None and list(numbers["ranks"]) == ["2"]
    for of_rows in numbers["ranks"].values():
        assert list(of_rows) == ["64", "1024"]
        for found in of_rows.values():
            assert found["apart"] < 1e-5 and found[IN_CHUNKS]["seconds"] > 0
        large = of_rows["1024"]
        assert large[PLAIN]["peak_bytes"] > 2 * 4 * 1024**2  # two float32 matrices at the very least
        assert large[IN_CHUNKS]["peak_bytes"] < large[PLAIN]["peak_bytes"] / 4


def without_room(rank: int, world_size: int) -> tuple[dict[int, dict[str, int]], dict[str, Any]]:
    """A machine whose memory is nearly full."""
    full = psutil.virtual_memory()._replace(available=10_000_000)
    world, bench = World(rank, world_size, 0, CPU), ContrastiveBench((1024, 64), (1,), dim=8, turns=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psutil, "virtual_memory", lambda: full)
        peaks = measure_memory(world, bench)
    return peaks, measure_losses(world, bench, peaks)


def test_what_does_not_fit_is_left_out() -> None:
    ((peaks, found),) = call(without_room, 1)
    assert PLAIN in found["64"] and PLAIN not in found["1024"] and found["1024"][IN_CHUNKS]["seconds"] > 0
    assert list(peaks[1024]) == [IN_CHUNKS]


def passes(rank: int, world_size: int) -> dict[str, dict[str, float]]:
    return measure_passes(World(rank, world_size, 0, CPU), 2, Rule(chunk=4), TINY)


def test_a_step_of_two_passes_is_measured() -> None:
    (found,) = call(passes, 1)
    assert list(found) == ["1", str(MICRO_STEPS)]
    assert found["1"]["x_one"] == 1.0 and found["8"]["samples"] == 8 * found["1"]["samples"]
    assert all(each["held_bytes"] > 0 and each["step_bytes"] > 0 for each in found.values())


def test_the_peak_is_what_was_held_at_once() -> None:
    def work() -> None:
        for _ in range(3):
            torch.ones(25_000_000)  # 100 MB, and gone

    assert 95e6 < peak_bytes(work, CPU) < 115e6
    assert peak_bytes(lambda: None, CPU) < 2e6


def test_wrong_options_are_refused() -> None:
    for change, message in (
        ({"loss": "hinge"}, "--loss hinge: expected softmax or sigmoid"),
        ({"targets": "all"}, "--targets all: expected shared or masked or own"),
        ({"rows": (9,)}, "--rows 9: --ranks 2 cannot have equally many"),
    ):
        with pytest.raises(UserError, match=message):
            measure_contrastive(replace(ContrastiveBench((8,), (2,)), **change))
