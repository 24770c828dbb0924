"""Runs over several catalogues: resumed bit for bit, the same on one rank and on two, and refused when changed."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mbsd.catalog.build.build import BuildOptions, build_catalog
from mbsd.catalog.concat import concat_tables
from mbsd.catalog.keys import write_keys
from mbsd.catalog.reader import Catalog
from mbsd.catalog.several import Catalogs
from mbsd.catalog.sources import read_items
from mbsd.catalog.synthetic.shop import ShopOptions, synthesise
from mbsd.catalog.tables import derive_table
from mbsd.config.parse import parse
from mbsd.config.run import PretrainConfig
from mbsd.errors import UserError
from mbsd.io.stored_vectors import read_vectors
from mbsd.tools.plan.shapes import num_samples
from mbsd.tools.report.examples import find_examples
from mbsd.tools.report.gather import read_evaluations
from mbsd.training.asked import changes
from tests.conftest import Shop
from tests.ranks import launch, refused
from tests.settings import TINY, losses, write_ds_config

STEPS, MIDDLE, BATCH = 6, 3, 16
WEIGHTS = {"shop": 5, "hats": 3, "bags": 2}
SMALL = ["--data.image_size=32", "--data.num_workers=0"]


@dataclass(frozen=True)
class Market:
    """Three catalogues, and a table of tags over all of them."""

    catalogs: dict[str, Path]
    tags: Path


@pytest.fixture(scope="module")
def market(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Market:
    folder = tmp_path_factory.mktemp("market")
    catalogs = {"shop": shop.catalog}
    for seed, name in enumerate(("hats", "bags"), start=11):
        synthesise(folder / f"{name}_raw", ShopOptions(num_items=60, seed=seed, image_side=48), workers=1)
        read = read_items(folder / f"{name}_raw/items.jsonl")
        items = (dataclasses.replace(item, title=f"{item.title} only{name}") for item in read)
        options = BuildOptions(workers=1, progress=False)
        build_catalog(items, folder / f"{name}_raw/images", folder / name, options)
        catalogs[name] = folder / name
    for name, path in catalogs.items():
        derive_table("attributes", Catalog(path), folder / f"{name}.parquet")
    concat_tables([(folder / f"{name}.parquet", name) for name in catalogs], folder / "tags.parquet")
    return Market(catalogs, folder / "tags.parquet")


def mixed(catalogs: Mapping[str, Path], weights: Mapping[str, float] = WEIGHTS) -> str:
    """The option of these catalogues."""
    entries = [{"path": str(catalogs[name]), "weight": weight, "name": name} for name, weight in weights.items()]
    return f"--data.catalogs={json.dumps(entries)}"


def words(run: Path, *more: object, steps: int = STEPS, **ds: Any) -> list[object]:
    return [
        "--deepspeed_config", write_ds_config(run.parent / f"{run.name}_ds", **ds), "--run.dir", run,
        f"--run.max_steps={steps}", "--run.log_every=1", "--run.validate_samples=30", f"--run.save_every={MIDDLE}",
        "--run.keep_last=9", *more,
    ]  # fmt: skip


def in_the_middle(run: Path, folder: Path) -> Path:
    """A copy of a finished run as it was after its first save."""
    shutil.copytree(run, folder)
    (folder / "DONE").unlink()
    shutil.rmtree(folder / f"checkpoints/step-{STEPS:08d}")
    return folder


@pytest.fixture(scope="module")
def whole(market: Market, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 1 over all three on two ranks, never stopped."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    printed = launch(2, words(run, *TINY, mixed(market.catalogs)), run.parent / "log").printed()
    for name, weight in WEIGHTS.items():
        count = len(Catalog(market.catalogs[name]).indices("train"))
        assert re.search(rf"mixture .*{name} {weight / 10:g}, 0\.\d+ epochs of {count}", printed)
    return run


@pytest.mark.distributed
def test_a_resumed_run_is_bit_for_bit_the_one_that_was_never_stopped(
    whole: Path, market: Market, tmp_path: Path
) -> None:
    run = in_the_middle(whole, tmp_path / "run")
    started = launch(2, words(run, *TINY, mixed(market.catalogs)), tmp_path / "log")
    assert started.lines(f"resuming {run}/checkpoints/step-{MIDDLE:08d}")
    assert losses(run) == losses(whole) and losses(run, "validation/") == losses(whole, "validation/")
    saved = [folder / f"checkpoints/step-{STEPS:08d}" for folder in (run, whole)]
    files = sorted(path.relative_to(saved[0]) for path in saved[0].rglob("*.safetensors"))
    assert len(files) == 3
    assert all((saved[0] / name).read_bytes() == (saved[1] / name).read_bytes() for name in files)


@pytest.mark.distributed
def test_one_rank_learns_what_two_learn_and_takes_them_over(whole: Path, market: Market, tmp_path: Path) -> None:
    alone, taken = tmp_path / "alone", in_the_middle(whole, tmp_path / "taken")
    for run in (alone, taken):
        launch(1, words(run, *TINY, mixed(market.catalogs), gradient_accumulation_steps=2), tmp_path / "log")
        for step, values in losses(whole).items():
            assert losses(run)[step] == pytest.approx(values, rel=1e-4, abs=1e-6), step


@pytest.mark.distributed
def test_the_epochs_of_each_are_reported(whole: Path, market: Market) -> None:
    """Counted here by hand: half of each batch of 16 is the shop's, within one sample."""
    train = {name: len(Catalog(path).indices("train")) for name, path in market.catalogs.items()}
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "samples" in line]
    assert [line["step"] for line in logged] == list(range(1, STEPS + 1))
    for line in logged:
        assert line["epoch"] == line["samples"] / sum(train.values())
        seen = {name: line[f"epoch_{name}"] * count for name, count in train.items()}
        assert sum(seen.values()) == pytest.approx(line["samples"])
        for name, weight in WEIGHTS.items():
            assert abs(seen[name] - line["samples"] * weight / 10) < 1.5
    board = EventAccumulator(str(whole / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/epoch_hats")] == list(range(1, STEPS + 1))
    # The vocabulary has the words of all three.
    vocabulary = json.loads((whole / "tokenizer/tokenizer.json").read_text())["model"]["vocab"]
    assert {"onlyhats", "onlybags"} <= vocabulary.keys()
    # What was saved names fingerprints and shares.
    identity = json.loads((whole / f"checkpoints/step-{STEPS:08d}/run.json").read_text())["identity"]
    prints = [Catalog(path).fingerprint[:12] for path in market.catalogs.values()]
    assert identity["data.catalogs"] == [
        f"{fingerprint}: {slots} of 10000 samples"
        for fingerprint, slots in zip(prints, (5000, 3000, 2000), strict=True)
    ]
    assert identity["catalogue"] == Catalogs(market.catalogs).fingerprint


@pytest.mark.distributed
def test_another_mixture_is_another_run(whole: Path, market: Market, tmp_path: Path) -> None:
    run = in_the_middle(whole, tmp_path / "run")
    before = sorted(path for path in run.rglob("*") if path.is_file())
    cases: list[tuple[str, str]] = [
        (mixed(market.catalogs, {"shop": 6, "hats": 2, "bags": 2}), "data.catalogs was "),
        (mixed(market.catalogs, {"hats": 3, "shop": 5, "bags": 2}), "data.catalogs was "),
        (mixed(market.catalogs, {"shop": 5, "hats": 3}), "data.catalogs was "),
        (f"--data.catalog={market.catalogs['shop']}", "catalogue was "),
    ]
    for option, expected in cases:
        line = refused(1, words(run, *TINY, option, gradient_accumulation_steps=2), tmp_path / "log")
        assert f"step-{MIDDLE:08d}: {expected}" in line and "choose another run.dir" in line
    assert sorted(path for path in run.rglob("*") if path.is_file()) == before
    # The same mixture in other words: weights of the same shares, a path with detours.
    detour = {name: path / ".." / path.name for name, path in market.catalogs.items()}
    line = words(whole, *TINY, mixed(detour, {"shop": 0.5, "hats": 0.3, "bags": 0.2}))
    assert changes(*parse(PretrainConfig, list(map(str, line))), whole) == []
    line = words(whole, *TINY, mixed(market.catalogs, {"shop": 6, "hats": 2, "bags": 2}))
    assert [change.name for change in changes(*parse(PretrainConfig, list(map(str, line))), whole)] == ["data.catalogs"]


def test_settings_that_name_no_mixture(market: Market, tmp_path: Path) -> None:
    both = [f"--data.catalog={market.catalogs['shop']}", mixed(market.catalogs)]
    path = str(market.catalogs["shop"])
    cases: list[tuple[list[str], str]] = [
        (both, "data.catalog and data.catalogs: both are set; set exactly one"),
        ([], "data.catalog and data.catalogs: neither is set; set exactly one"),
        (["--data.catalogs=[]"], "data.catalogs is empty"),
        (
            [mixed(market.catalogs, {"shop": 1, "hats": 0})],
            r"data.catalogs\[1\].weight=0.0 of 'hats': expected a number",
        ),
        ([mixed(market.catalogs, {"shop": -1})], r"data.catalogs\[0\].weight=-1.0 of 'shop'"),
        ([mixed(market.catalogs, {"shop": 1e6, "hats": 1})], r"data.catalogs\[1\].weight=1 of 'hats': 0.01 of 10,000"),
        ([f"--data.catalogs={json.dumps([{'path': path}, {'path': path}])}"], "is called 'catalog', as .* set a name"),
        (
            [f"--data.catalogs={json.dumps([{'path': path, 'name': 'a=b'}])}"],
            r"data.catalogs\[0\].name='a=b': expected",
        ),
        ([f"--data.catalogs={json.dumps([{'path': path, 'wieght': 1}])}"], "wieght"),
    ]
    for options, expected in cases:
        with pytest.raises(UserError, match=expected):
            parse(PretrainConfig, list(map(str, words(tmp_path / "run", *options))))


def test_yaml_and_home(market: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    entries = "[{path: ~/hats, weight: 2}, {path: bags}]"
    (tmp_path / "mix.yaml").write_text(f"data: {{catalogs: {entries}}}")
    config, _ = parse(PretrainConfig, [f"--config={tmp_path}/mix.yaml", *map(str, words(tmp_path / "run"))])
    assert config.data.catalogs is not None and config.data.catalog is None
    found = [(one.path, one.weight, one.known_as) for one in config.data.catalogs]
    assert found == [(f"{tmp_path}/hats", 2.0, "hats"), ("bags", 1.0, "bags")]
    assert num_samples(config) is None, "they are not there"


@pytest.mark.distributed
def test_tasks_scores_and_vectors(whole: Path, market: Market, tmp_path: Path) -> None:
    """Fine-tuned on a table over all three, scored and embedded: outside, an item is its catalogue and its number."""
    tuned = tmp_path / "tuned"
    more = [mixed(market.catalogs), *SMALL, "--task.name=attributes", "--data.table", market.tags]
    asked = words(tuned, *more, "--run.init_from", whole, steps=2)
    launch(1, asked, tmp_path / "log", launcher="finetune")
    lines = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    assert {f"epoch_{name}" for name in WEIGHTS} <= lines[0].keys()
    scored = ["--model", tuned, "--out", tmp_path / "scores.json", "--data.table", market.tags, "--bootstrap=0"]
    launch(1, [*scored, mixed(market.catalogs), *SMALL], tmp_path / "log", launcher="evaluate")
    report = json.loads((tmp_path / "scores.json").read_text())
    assert report["catalog"] == {name: str(path) for name, path in market.catalogs.items()}
    answers, table = pq.read_table(tmp_path / "scores.parquet"), pq.read_table(market.tags)
    rows = table.take(answers["row"])
    assert answers.num_rows == report["samples"] > 50
    for name in ("catalog", "item", "text"):
        assert answers[name].to_pylist() == rows[name].to_pylist()
    (evaluation,) = read_evaluations([tmp_path / "scores.json"])
    examples = [one for of_kind in find_examples(evaluation, 4).values() for one in of_kind]
    named = {row["row"]: (row["catalog"], row["item"]) for row in answers.to_pylist()}
    assert len(examples) > 4
    for example in examples:
        name, item = named[example.row]
        assert example.items[0].title == Catalog(market.catalogs[name]).title(item)
    embedded = ["--model", tuned, "--out", tmp_path / "vectors", mixed(market.catalogs), *SMALL]
    launch(1, embedded, tmp_path / "log", launcher="embed")
    vectors = pq.read_table(tmp_path / "vectors/vectors")
    expected = [(n, i) for n, path in market.catalogs.items() for i in range(len(Catalog(path)))]
    assert list(zip(vectors["catalog"].to_pylist(), vectors["item"].to_pylist(), strict=True)) == expected
    ids = [Catalog(market.catalogs[name]).record(item).item_id for name, item in expected[-60:]]
    assert vectors["item_id"].to_pylist()[-60:] == ids
    with pytest.raises(UserError, match=r"vectors of several catalogues \(shop, hats, bags\)"):
        read_vectors(tmp_path / "vectors")
    # The vectors of one catalogue alone are the same numbers.
    one = ["--model", tuned, "--out", tmp_path / "one", f"--data.catalog={market.catalogs['bags']}", *SMALL]
    launch(1, one, tmp_path / "log", launcher="embed")
    alone = read_vectors(tmp_path / "one").vectors_nE
    last = vectors["vector"].combine_chunks().flatten().to_numpy().reshape(len(expected), -1)[-len(alone) :]
    assert alone == pytest.approx(last, abs=1e-5)


@pytest.mark.distributed
def test_the_contrastive_stage_and_retrieval(market: Market, tmp_path: Path) -> None:
    """Keys are each catalogue's own; the pool that is searched is of both."""
    both = {name: market.catalogs[name] for name in ("hats", "bags")}
    for path in both.values():
        write_keys(Catalog(path))
    option = mixed(both, {"hats": 1, "bags": 1})
    run = tmp_path / "contrastive"
    launch(2, words(run, *TINY, option, "--stage=contrastive", "--contrastive.dim=16", steps=2), tmp_path / "log")
    keys = json.loads((run / "checkpoints/step-00000002/run.json").read_text())["identity"]["keys"]
    assert keys.count(";") == 1
    scored = ["--model", run, "--out", tmp_path / "found.json", "--task=retrieval", "--bootstrap=0", option, *SMALL]
    launch(1, [*scored, "--split=validation"], tmp_path / "log", launcher="evaluate")
    answers = pq.read_table(tmp_path / "found.parquet")
    expected = [(n, i) for n, path in both.items() for i in Catalog(path).indices("validation").tolist()]
    assert list(zip(answers["catalog"].to_pylist(), answers["item"].to_pylist(), strict=True)) == expected


def test_a_plan_counts_the_samples_of_all(market: Market, tmp_path: Path) -> None:
    config, _ = parse(PretrainConfig, list(map(str, words(tmp_path / "run", *TINY, mixed(market.catalogs)))))
    assert num_samples(config) == sum(len(Catalog(path).indices("train")) for path in market.catalogs.values())
