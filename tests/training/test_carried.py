"""masked -> contrastive -> matching or a task: each start says in one line what it took of the last."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from mbsd.checkpoint.resume import weights_folder
from tests.conftest import Shop
from tests.ranks import launch
from tests.settings import run_words, stage_1_words, stage_2_words

FEW = ["--run.validate_every=0", "--data.image_size=32", "--data.num_workers=0"]
HEAD = "image_projection, logit_scale, text_projection"


@pytest.mark.distributed
def test_each_stage_says_what_it_took_of_the_last(shop: Shop, tmp_path: Path) -> None:
    masked, contrastive, matching, task = (tmp_path / name for name in ("masked", "contrastive", "matching", "task"))
    own = ["--stage=contrastive", "--contrastive.targets=own", "--contrastive.dim=8"]
    launch(1, stage_1_words(masked, shop.catalog, 1, *FEW), tmp_path / "log1")
    started = {
        contrastive: launch(
            1, run_words(contrastive, shop.catalog, 1, *own, f"--run.init_from={masked}", *FEW), tmp_path / "log2"
        ),
        matching: launch(
            1, stage_2_words(matching, shop.catalog, shop.pairs, 1, f"--run.init_from={contrastive}", *FEW),
            tmp_path / "log3",
        ),
        task: launch(
            1, run_words(task, shop.catalog, 1, "--data.table", shop.tags, f"--run.init_from={contrastive}", *FEW),
            tmp_path / "log4", launcher="finetune",
        ),
    }  # fmt: skip
    saved = load_file(Path(weights_folder(str(contrastive))) / "model.safetensors")
    count = f"the backbone ({sum(w.numel() for name, w in saved.items() if name.startswith('mbsd.')):,} weights)"
    old = "patch_decoder, word_bias, word_transform"
    for run, line in (
        (contrastive, f"weights of {masked}: took {count}; dropped {old}; new: {HEAD}"),
        (matching, f"weights of {contrastive}: took {count}; dropped {HEAD}; new: match"),
        (task, f"weights of {contrastive}: took {count}; dropped {HEAD}; new: classifier"),
    ):
        assert [found.strip() for found in started[run].lines("weights of")] == [f"start        {line}"]
    again = tmp_path / "again"
    words = run_words(again, shop.catalog, 1, *own[:2], "--contrastive.dim=5", f"--run.init_from={contrastive}", *FEW)
    (line,) = launch(1, words, tmp_path / "log5").lines("weights of")
    both = "image_projection, text_projection"
    assert line.endswith(f": took {count}, logit_scale; dropped {both}; new: {both}")
