"""FashionBERT's and Kaleido-BERT's own pre-training as the launcher runs it: learning, ranks, micro-steps, resuming."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.runs import checksums, kill_after, step
from tests.conftest import Shop
from tests.ranks import Ranks, launch, refused
from tests.settings import ADAM, TINY, losses, run_words

pytestmark = pytest.mark.distributed

STEPS = {"fashionbert": 8, "kaleido": 6}
EARLY, HALF = 2, 4
TERMS = {
    "fashionbert": ("mlm", "tia", "mpm"),
    "kaleido": ("mlm", "itm", "rotation", "jigsaw", "camouflage", "grey", "blank"),
}
SIZES = [word for word in TINY if "patchify" not in word]


def words_of(stage: str, run: Path, catalog: Path, *more: object, **ds: Any) -> list[object]:
    """A run of 8 samples a step over crops of 8 pixels, without dropout."""
    words = [
        f"--stage={stage}", f"--model.architecture={stage}", *SIZES, "--data.num_workers=0", "--model.crop_size=8",
        "--model.resnet_blocks=[1,1,1]", "--run.log_every=1", f"--run.validate_every={EARLY}",
        "--run.validate_samples=8", *more,
    ]  # fmt: skip
    return run_words(run, catalog, STEPS[stage], *words, **{"train_batch_size": 8, "optimizer": ADAM, **ds})


@pytest.mark.parametrize("stage", STEPS)
def test_it_learns_the_same_on_one_rank_and_on_two(stage: str, shop: Shop, tmp_path: Path) -> None:
    """On two ranks the losses are added as they come; one rank with two micro-steps knows them from a first pass."""
    two, one = tmp_path / "two", tmp_path / "one"
    launch(2, words_of(stage, two, shop.catalog), tmp_path / "log")
    launch(1, words_of(stage, one, shop.catalog, gradient_accumulation_steps=2), tmp_path / "log")
    assert (two / "DONE").exists()
    found, expected = losses(one), losses(two)
    assert sorted(found) == list(range(1, STEPS[stage] + 1))
    for number, values in expected.items():
        assert set(values) == {"loss", *(f"loss_{term}" for term in TERMS[stage])}
        assert found[number] == pytest.approx(values, rel=1e-4, abs=1e-5), number
    held_out = losses(two, "validation/")
    start, end = held_out[EARLY], held_out[STEPS[stage]]
    for number, values in losses(one, "validation/").items():
        assert values == pytest.approx(held_out[number], rel=1e-4, abs=1e-5), number
    names = {"fashionbert": ("mlm", "mpm"), "kaleido": ("mlm", "grey", "blank")}[stage]
    for name in ("loss", *(f"loss_{name}" for name in names)):
        assert end[f"validation/{name}"] < start[f"validation/{name}"], name


@pytest.mark.parametrize("stage", STEPS)
def test_a_run_killed_between_two_steps_ends_bitwise_like_an_undisturbed_one(
    stage: str, shop: Shop, tmp_path: Path
) -> None:
    """With dropout, crops and flips, in two passes; workers build the batches."""
    more = [
        "--model.dropout=0.1", "--data.num_workers=1", f"--run.save_every={HALF}", "--run.max_steps=8",
        "--run.validate_every=0", "--run.validate_samples=4",
    ]  # fmt: skip
    whole, cut = (
        words_of(stage, tmp_path / name, shop.catalog, *more, gradient_accumulation_steps=2)
        for name in ("whole", "cut")
    )
    launch(2, whole, tmp_path / "log")
    kill_after(Ranks(2, cut, tmp_path / "log"), step(tmp_path / "cut", HALF))
    assert not (tmp_path / "cut" / "DONE").exists()
    resumed = launch(2, cut, tmp_path / "log")
    assert f"resuming {step(tmp_path / 'cut', HALF)}" in resumed.printed()
    assert checksums(step(tmp_path / "cut", 8)) == checksums(step(tmp_path / "whole", 8))
    if stage == "kaleido":
        return
    # The weights, of the first pass, are those of the losses of the second: dropout drew the same.
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "weight_mlm" in row]
    assert len(rows) == 8
    for row in rows:
        terms = [row[f"loss_{name}"] for name in TERMS["fashionbert"]]
        total = sum(math.exp(term) for term in terms)
        inverse = [1 / (3 - (math.exp(term) / total) ** 2) for term in terms]
        weights = [row[f"weight_{name}"] for name in TERMS["fashionbert"]]
        assert weights == pytest.approx([value / sum(inverse) for value in inverse], rel=1e-5)
        assert row["loss"] == pytest.approx(sum(w * term for w, term in zip(weights, terms, strict=True)), rel=1e-5)


def test_other_models_and_settings_are_refused(shop: Shop, tmp_path: Path) -> None:
    for stage, architecture, said in (
        ("fashionbert", "mbsd", "model.architecture=mbsd: stage=fashionbert predicts features of crops"),
        ("kaleido", "fashionbert", "model.architecture=fashionbert: stage=kaleido predicts features of crops"),
    ):
        words = run_words(tmp_path / stage, shop.catalog, 1, f"--stage={stage}", f"--model.architecture={architecture}")
        assert said in refused(1, words, tmp_path / "log")
    words = words_of("kaleido", tmp_path / "run", shop.catalog, "--kaleido.grey=17")
    assert "kaleido.grey=17: that grid has 16 crops" in refused(1, words, tmp_path / "log")
