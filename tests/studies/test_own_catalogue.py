"""A study on a catalogue of one's own with pairs from titles: attributes that no query named, differences in pairs."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from mbsd.catalog.derived.pairs import derive_pairs
from mbsd.catalog.derived.settings import DeriveSettings
from mbsd.catalog.reader import Catalog
from tests.conftest import Shop
from tests.settings import write_ds_config
from tests.studies.test_studies import ADAM, MODEL, SIZES, said, study
from tests.studies.warm import Server

WITHHELD = ("颜色", "袖长")


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Server:
    return Server(tmp_path_factory.mktemp("warm"))


@pytest.fixture(scope="module")
def config(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """YAML files that name no catalogue: the study names its own."""
    folder = tmp_path_factory.mktemp("own")
    derive_pairs(Catalog(shop.catalog), folder / "pairs.parquet", DeriveSettings(withhold=WITHHELD))
    data = {"catalog": "nowhere", **SIZES}
    run = {"dir": "unused", "max_steps": 3, "validate_every": 3}
    stages = {
        "stage1": {"stage": "masked", "run": run, "data": data, "model": MODEL},
        "stage2": {"stage": "matching", "run": run, "data": {**data, "table": "nowhere"}},
        "finetune": {"run": run, "data": {**data, "table": "nowhere"}},
    }
    ds_config = str(write_ds_config(folder, optimizer=ADAM))
    for name, tree in stages.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    tree: dict[str, Any] = {
        name: {"config": str(folder / f"{name}.yaml"), "deepspeed_config": ds_config} for name in stages
    }
    pairs, tags = str(folder / "pairs.parquet"), str(shop.tags)
    tree |= {"tables": {"catalog": str(shop.catalog), "pairs": pairs, "attributes": tags}, "withheld": True}
    tree |= {"out": str(folder / "study"), "evaluate": {"bootstrap": 0, "micro_batch": 128}, "rows": "1,6"}
    (folder / "study.yaml").write_text(yaml.safe_dump(tree))
    return folder / "study.yaml"


@pytest.fixture(scope="module")
def ablation(config: Path, warm: Server) -> tuple[Path, str]:
    words = ["--config", config, "--launch.command", warm.command, "--views=[image,text]"]
    return config.parent / "study", said(study("ablation", *words, "--bootstrap=100"))


def expected(out: Path, row: int, seed: int, column: str, file: str = "test") -> float:
    """From the answers' file, by scikit-learn."""
    answers = pq.read_table(out / f"seed-{seed}/row-{row}/batch-16-lr-0.003/{file}.parquet").to_pylist()
    kept = [one for one in answers if one["text"].split(":")[0] in WITHHELD]
    assert 0 < len(kept) < len(answers)
    return float(roc_auc_score([one["label"] == "yes" for one in kept], [one[column] for one in kept]))


@pytest.mark.distributed
def test_attributes_that_no_query_named(ablation: tuple[Path, str], config: Path, shop: Shop) -> None:
    out, _ = ablation
    lines = list(csv.DictReader((out / "ablation.csv").open(encoding="utf-8")))
    assert len(lines) == 2 * 2 * 2  # rows, views, all or withheld
    for line in lines:
        row, seed, view = int(line["row"]), int(line["seed"]), line["view"]
        if line["rows"] == "withheld":
            assert float(line["roc_auc"]) == pytest.approx(expected(out, row, seed, f"probability_{view}"))
        else:
            scores = json.loads((out / f"seed-{seed}/row-{row}/batch-16-lr-0.003/test.json").read_text())
            assert float(line["roc_auc"]) == scores["views"][view]["all"]["roc_auc"]
    ran = yaml.safe_load((out / "seed-0/stage2/config.yaml").read_text())
    assert ran["data"]["table"] == str(config.parent / "pairs.parquet") and ran["data"]["catalog"] == str(shop.catalog)


@pytest.mark.distributed
def test_the_first_row_less_the_other(ablation: tuple[Path, str]) -> None:
    out, screen = ablation
    page = (out / "ablation.md").read_text(encoding="utf-8")
    values = defaultdict(list)
    for line in csv.DictReader((out / "ablation.csv").open(encoding="utf-8")):
        values[line["view"], line["rows"], line["row"]].append(100 * float(line["roc_auc"]))
    found = re.findall(r"^\| 1 less 6 +\| ([^|]+)\| ([^|]+)\| ([^|]+)\| ([^|]+)\|$", page, re.MULTILINE)
    named = ", attributes that no query named (袖长, 颜色)"
    assert [of.strip() for of, *_ in found] == [f"view {view}{of}" for view in ("image", "text") for of in ("", named)]
    for (_, mean, interval, pairs), key in zip(
        found, [(view, rows) for view in ("image", "text") for rows in ("all", "withheld")], strict=True
    ):
        less = [one - other for one, other in zip(values[*key, "1"], values[*key, "6"], strict=True)]
        assert [float(value) for value in pairs.split(",")] == pytest.approx(less, abs=0.0051)
        low, high = (float(end) for end in interval.split(" to "))
        assert float(mean) == pytest.approx(less[0], abs=0.0051) and low <= float(mean) <= high and low < high
    assert "100 resamples" in " ".join(screen.split())


@pytest.mark.distributed
def test_missing_of_the_same_runs(ablation: tuple[Path, str], config: Path, warm: Server) -> None:
    out, before = ablation[0], len(warm.started)
    words = ["--config", config, "--launch.command", warm.command, "--rates=[0.5]"]
    said(study("missing", *words))
    assert [launcher for launcher, _ in warm.started[before:]] == ["evaluate"] * 4, "two a cell; nothing is trained"
    lines = list(csv.DictReader((out / "missing.csv").open(encoding="utf-8")))
    withheld = [line for line in lines if line["where"] == "withheld"]
    assert len(withheld) == 2 * 2 * 3  # rows, removed, rates
    for line in withheld:
        file, column = {
            "0.0": ("test-title", "full"),
            "0.5": (f"test-{line['removed']}", "missing_0.5"),
            "1.0": ("test-title", {"title": "image", "image": "text"}[line["removed"]]),
        }[line["rate"]]
        value = expected(out, int(line["row"]), int(line["seed"]), f"probability_{column}", file)
        assert float(line["roc_auc"]) == pytest.approx(value)


@pytest.mark.distributed
def test_answers_of_another_scoring_are_refused(ablation: tuple[Path, str], config: Path, warm: Server) -> None:
    answers = ablation[0] / "seed-0/row-6/batch-16-lr-0.003/test.parquet"
    given = answers.read_bytes()
    other = (ablation[0] / "seed-0/row-1/batch-16-lr-0.003/test.parquet").read_bytes()
    answers.write_bytes(other)
    words = ["--config", config, "--launch.command", warm.command, "--views=[image,text]"]
    assert "test.parquet: not the answers that" in said(study("ablation", *words), code=2)
    answers.write_bytes(given)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--shop.items=100"], ("shop and tables are both set",)),
        (["--tables=null", "--shop.items=100"], ("withheld=true", "--withhold ATTRIBUTE")),
        (["--views=[text,text]"], ("views=",)),
        (["--bootstrap=-1"], ("bootstrap=-1",)),
    ],
)
def test_what_cannot_be_asked(config: Path, tmp_path: Path, words: list[str], parts: tuple[str, ...]) -> None:
    message = said(study("ablation", "--config", config, "--out", tmp_path / "study", *words), code=2)
    assert all(part in message for part in parts) and not (tmp_path / "study").exists()


def test_pairs_that_do_not_say_what_they_withheld(config: Path, shop: Shop, tmp_path: Path) -> None:
    words = ["--out", tmp_path / "study", "--tables.pairs", shop.pairs]
    message = said(study("ablation", "--config", config, *words), code=2)
    assert f"table {shop.pairs}" in message and "--withhold ATTRIBUTE" in message and message.count("\n") == 1
