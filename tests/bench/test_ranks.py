"""The two measurements on ranks, at a size that a test can wait for: contestants, ratios and bytes are all there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import command

pytestmark = pytest.mark.distributed


def bench(out: Path, *words: object) -> dict[str, Any]:
    done = command("bench", *words, "--layers", 1, "--json", out)
    assert done.returncode == 0, done.stderr[-4000:]
    numbers: dict[str, Any] = json.loads(out.read_text())["ranks"]
    assert list(numbers) == ["1", "2"]
    return numbers


def test_lamb(tmp_path: Path) -> None:
    numbers = bench(tmp_path / "lamb.json", "lamb", "--ranks", 1, "--ranks", 2, "--turns", 1)
    assert list(numbers["1"]) == [
        "Lamb, ZeRO-2", "Lamb, ZeRO-2, engine.step()", "torch's fused AdamW, ZeRO-2",
        "torch's fused AdamW, ZeRO-2, engine.step()", "Lamb, no ZeRO", "LAMB as a loop over tensors",
    ]  # fmt: skip
    assert list(numbers["2"]) == list(numbers["1"])[:4]
    ours, whole, plain = (
        numbers["1"][name] for name in ("Lamb, ZeRO-2", "Lamb, ZeRO-2, engine.step()", "Lamb, no ZeRO")
    )
    assert whole["seconds"] > ours["seconds"] and "x_adamw" in whole
    for found in numbers["1"].values():
        assert 7.5 < found["state_bytes_per_parameter"] <= 8.0 and found["seconds"] > 0
    # Two moments of 4 bytes each, shared between the ranks.
    assert 3.7 < numbers["2"]["Lamb, ZeRO-2"]["state_bytes_per_parameter"] < 4.1
    assert {"x_adamw", "x_textbook"} <= ours.keys() & plain.keys()


def test_checkpoint(tmp_path: Path) -> None:
    numbers = bench(tmp_path / "c.json", "checkpoint", "--ranks", 1, "--ranks", 2, "--saves", 1, "--folder", tmp_path)
    for found in numbers.values():
        assert found["stall_ratio"] == pytest.approx(found["stall_s"] / found["plain_s"])
        # Masters, two moments and the model in 4 bytes each; the tokenizer is small.
        assert found["megabytes"] == pytest.approx(16e-6 * found["parameters"], rel=0.02)
        assert found["durable_s"] >= found["stall_s"] > 0 and found["resume_s"] > 0
