"""Stage `masked` of baselines and stage `vilt` through the launcher: they learn, resume bit for bit, and two ranks do
what one does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from mbsd.catalog.keys import write_keys
from mbsd.catalog.reader import Catalog
from mbsd.checkpoint.resume import weights_folder
from mbsd.config.parse import parse
from mbsd.config.run import PretrainConfig
from mbsd.errors import UserError
from mbsd.model.embedder import load_embedder
from mbsd.model.heads import MbsdForClassification
from mbsd.model.load import load_model
from mbsd.stages.registry import find_stage
from tests.checkpoint.runs import checksums, kill_after, step
from tests.conftest import Shop
from tests.ranks import Ranks, launch, refused
from tests.settings import ADAM, losses, run_words, write_ds_config

STEPS, HALF = 14, 7  # 12 steps make an epoch of the shop
SIZES = [
    "--data.image_size=32", "--data.num_workers=0", "--model.hidden_size=32", "--model.num_hidden_layers=2",
    "--model.num_attention_heads=2", "--model.intermediate_size=64", "--model.vocab_size=600",
    "--model.initializer_range=0.15", "--model.dropout=0.0",
]  # fmt: skip
PATCHES = ["--model.patchify_strides=[8]"]
MBSD = ["--model.patchify_strides=[4,2]", "--model.patchify_channels=[16]"]
CASES = {
    "bert": ["--model.architecture=bert"],
    "vit": ["--model.architecture=vit", *PATCHES],
    "vilt": ["--model.architecture=vilt", *PATCHES],
    "vilt, cross-modal": ["--model.architecture=vilt", "--masking.cross_modal=true", *PATCHES],
    "vilt, random": ["--stage=vilt", "--model.architecture=vilt", *PATCHES],
    "mbsd, hard": ["--stage=vilt", "--itm.negatives=hard", *MBSD],
}
# Of stage masked; of vilt mlm and itm.
LOSSES = {
    "bert": {"mlm"}, "vit": {"mpm"}, "vilt": {"mlm", "mpm"},
    "vilt, cross-modal": {"mlm", "mpm", "title", "picture_full", "picture_text"},
}  # fmt: skip
KILLED = [case for case in CASES if case != "vilt, cross-modal"]  # tests/checkpoint/test_exact.py has it


@pytest.fixture(scope="module")
def catalog(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop's catalogue with keys: titles that several items have are one product."""
    folder = tmp_path_factory.mktemp("keyed") / "catalog"
    shutil.copytree(shop.catalog, folder)
    write_keys(Catalog(folder))
    return folder


def words(run: Path, catalog: Path, case: str, *more: object, **ds: Any) -> list[object]:
    often = ["--run.log_every=1", "--run.validate_samples=48"]
    return run_words(run, catalog, STEPS, *SIZES, *CASES[case], *often, *more, **{"optimizer": ADAM, **ds})


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_learn_what_one_rank_learns(case: str, catalog: Path, tmp_path: Path) -> None:
    """The same micro-batches, on two ranks or in two micro-steps; and the model is worth more than at the start."""
    runs = {}
    for ranks in (1, 2):
        runs[ranks] = tmp_path / f"run{ranks}"
        arguments = words(runs[ranks], catalog, case, "--run.validate_every=2", gradient_accumulation_steps=2 // ranks)
        launch(ranks, arguments, tmp_path / "log")
    one, two = (losses(run) for run in runs.values())
    terms = LOSSES.get(case, {"mlm", "itm"})
    assert set(one[1]) == {"loss", *(f"loss_{name}" for name in terms)}
    for number in range(1, STEPS + 1):
        assert two[number] == pytest.approx(one[number], rel=1e-4, abs=1e-5), number
    held_out, again = (losses(run, "validation/") for run in runs.values())
    for number, values in held_out.items():
        assert again[number] == pytest.approx(values, rel=1e-4, abs=1e-5), number
    assert set(held_out[2]) == {f"validation/{name}" for name in one[1]}
    assert held_out[STEPS]["validation/loss"] < held_out[2]["validation/loss"] * 0.98
    # What was pre-trained is there for a task and for vectors; a mask vector is stage 1's alone.
    folder = weights_folder(str(runs[1]))
    taken = load_model(MbsdForClassification, folder, 32).taken_over
    assert taken is not None and taken.new == ("classifier",)
    assert "mbsd.mask_D" not in load_file(folder / "model.safetensors") or case.startswith("mbsd")
    assert load_embedder(folder, 32).vector == ("h" if "," in case else "mean")


@pytest.mark.distributed
@pytest.mark.parametrize("case", KILLED)
def test_a_killed_run_ends_bitwise_like_an_undisturbed_one(case: str, catalog: Path, tmp_path: Path) -> None:
    more = [f"--run.save_every={HALF}", "--run.validate_every=0", "--model.dropout=0.1"]
    whole, cut = (words(tmp_path / name, catalog, case, *more) for name in ("whole", "cut"))
    launch(2, whole, tmp_path / "log")
    kill_after(Ranks(2, cut, tmp_path / "log"), step(tmp_path / "cut", HALF))
    assert not (tmp_path / "cut" / "DONE").exists()
    launch(2, cut, tmp_path / "log")
    assert checksums(step(tmp_path / "cut", STEPS)) == checksums(step(tmp_path / "whole", STEPS))


@pytest.mark.distributed
def test_a_model_without_the_view_full(catalog: Path, tmp_path: Path) -> None:
    arguments = words(tmp_path / "run", catalog, "bert", "--stage=vilt")
    assert "the view full is none of a bert, which reads text alone" in refused(1, arguments, tmp_path / "log")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["--model.architecture=two_tower"], "architecture=two_tower: stage=masked .* no stream has both"),
        (["--model.architecture=bert", "--masking.mpm_target=hog"], "mpm_target=hog: .*=bert masks no patches"),
        (["--model.architecture=kaleido", "--masking.mpm_probability=0.2"], "0.2: .*=kaleido masks no patches"),
        (["--model.architecture=vit", "--masking.mlm_probability=0.2"], "mlm_probability=0.2: .*=vit masks no words"),
        (["--stage=vilt", "--masking.mpm_corruption=bert"], "mpm_corruption=bert: stage=vilt masks no patches"),
        (["--itm.negatives=hard"], "stage=masked does not read itm"),
        (["--stage=matching", "--data.table=t", "--itm.negatives=hard"], "stage=matching does not read itm"),
    ],
)
def test_settings_that_are_not_read(settings: list[str], said: str, tmp_path: Path) -> None:
    ds = write_ds_config(tmp_path)
    given = [f"--deepspeed_config={ds}", "--run.dir=r", "--run.max_steps=1", "--data.catalog=c", *settings]
    with pytest.raises(UserError, match=said):
        config, _ = parse(PretrainConfig, given)
        find_stage(config.stage).needs(config)
