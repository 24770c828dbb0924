"""What was written before the packages were laid out anew (commit 2357cce) is resumed, evaluated and loaded as ever.

`run/` is a run of stage 1 that was killed after its save of step 6 of 12; `exported/` is a model of task attributes;
`expected.json` holds the losses of the same run left alone, and the scores and vectors of that model, as the code of
then computed them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Shop
from tests.ranks import launch
from tests.settings import losses, run_words

HERE = Path(__file__).parent
EXPECTED: dict[str, Any] = json.loads((HERE / "expected.json").read_text())
LENGTHS = ["--data.max_text_tokens=48", "--data.max_query_tokens=16"]
SIZES = [
    "--data.image_size=32", "--data.num_workers=0", "--model.hidden_size=16", "--model.num_hidden_layers=1",
    "--model.num_attention_heads=2", "--model.intermediate_size=32", "--model.patchify_strides=[4,2]",
    "--model.patchify_channels=[8]", "--model.vocab_size=300", "--model.dropout=0.1", *LENGTHS,
]  # fmt: skip


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_is_resumed(ranks: int, shop: Shop, tmp_path: Path) -> None:
    """On one rank dropout too is drawn as it would have been; on two it is drawn anew."""
    run = tmp_path / "run"
    shutil.copytree(HERE / "run", run)
    every = ["--run.log_every=1", "--run.validate_samples=30", "--run.seed=3", "--run.save_every=6"]
    start = launch(ranks, run_words(run, shop.catalog, 12, *SIZES, *every), tmp_path / "log")
    assert start.lines("resuming") and "step-00000006" in start.lines("resuming")[0]
    assert (run / "DONE").exists()
    logged = losses(run) | {12: losses(run)[12] | losses(run, "validation/")[12]}
    assert sorted(logged) == list(range(1, 13))
    for step, values in logged.items():
        expected = {name: EXPECTED["losses"][str(step)][name] for name in values}
        assert values == pytest.approx(expected, rel=1e-4 if ranks == 1 else 0.05), step


@pytest.mark.distributed
def test_an_exported_model_is_evaluated(shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "attributes.json"
    words = [
        "--model", HERE / "exported", "--out", out, "--data.catalog", shop.catalog, "--data.table", shop.tags,
        "--data.image_size=32", "--data.num_workers=0", "--bootstrap=0", *LENGTHS,
    ]  # fmt: skip
    launch(1, words, tmp_path / "log", launcher="evaluate")
    views = json.loads(out.read_text())["views"]
    for view, metrics in EXPECTED["attributes"].items():
        assert views[view]["all"] == pytest.approx(metrics, abs=1e-6), view


def test_an_exported_model_is_loaded(shop: Shop) -> None:
    from transformers import AutoModel

    from mbsd.inference import Encoder

    model = AutoModel.from_pretrained(HERE / "exported")
    assert type(model).__name__ == "MbsdModel" and model.config.architectures == ["MbsdForClassification"]
    encoder = Encoder.load(HERE / "exported")
    picture = sorted((shop.catalog.parent / "raw" / "images").iterdir())[0]
    vectors = encoder.encode(titles=["red linen dress", None], images=[None, picture])
    assert np.allclose(vectors, EXPECTED["vectors"], atol=1e-5)
    scores = encoder.score(["colour:red"], titles=["red linen dress", "blue shirt"])
    assert np.allclose(scores, EXPECTED["scores"], atol=1e-6)
