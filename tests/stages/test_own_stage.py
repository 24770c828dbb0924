"""A stage of one's own: a few lines and an entry in the table, and the launcher trains it; no other file is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mbsd.batch import Batch
from mbsd.config.stages import MaskingConfig
from mbsd.data.spec import Masked, Needs
from mbsd.model.heads import MbsdForMaskedModelling
from mbsd.model.load import start_model
from mbsd.stages.masked import MaskedObjective
from mbsd.stages.registry import STAGES
from mbsd.stages.stage import Losses, Stage
from tests.conftest import Shop
from tests.ranks import Ranks, launch
from tests.settings import losses, stage_1_words


class MaskedWords(MaskedObjective):
    """Masked words alone."""

    def forward(self, batch: Batch, context: Any = None) -> Losses:
        mlm = super().forward(batch, context)["loss_mlm"]
        return {"loss": mlm, "loss_mlm": mlm}


WORDS = Stage(
    needs=lambda config: Needs(("full",), Masked(config.masking or MaskingConfig())),
    objective=lambda config, inputs: MaskedWords(
        start_model(MbsdForMaskedModelling, config, len(inputs.tokenizer), inputs.weights)
    ),
    outline=lambda config, model: MaskedWords(MbsdForMaskedModelling(model)),
)


def register(rank: int) -> None:
    STAGES["words"] = WORDS


@pytest.mark.distributed
def test_a_stage_of_a_few_lines_is_trained_by_the_launcher(shop: Shop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--stage=words", "--run.log_every=1", "--run.save_every=10"]
    launch(2, stage_1_words(run, shop.catalog, 20, *words), tmp_path / "log", before=(register, ()))
    logged = losses(run)
    assert sorted(logged) == list(range(1, 21)) and (run / "DONE").exists()
    assert all(values["loss"] == values["loss_mlm"] for values in logged.values())
    assert logged[20]["loss"] < logged[1]["loss"] - 0.05
    assert "loss_mpm" not in logged[1] and losses(run, "validation/")[20]["validation/loss_mlm"] > 0


@pytest.mark.distributed
def test_a_table_that_the_stage_does_not_read(shop: Shop, tmp_path: Path) -> None:
    words = stage_1_words(tmp_path / "run", shop.catalog, 2, "--stage=words", "--data.table", shop.pairs)
    start = Ranks(1, words, tmp_path / "log", before=(register, ()))
    assert start.wait() == [2]
    assert "no table is read here" in start.errors()[0] and str(shop.pairs) in start.errors()[0]


@pytest.mark.distributed
def test_a_stage_that_is_not_there(shop: Shop, tmp_path: Path) -> None:
    start = Ranks(2, stage_1_words(tmp_path / "run", shop.catalog, 2, "--stage=words"), tmp_path / "log")
    assert start.wait() == [2, 2]
    assert start.errors() == [
        "error: stage=words: expected one of masked, contrastive, matching, vilt, fashionbert, kaleido"
    ]
