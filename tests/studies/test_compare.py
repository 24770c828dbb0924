"""`launchers/compare.py`: killed, it goes on; its tables are what the scores' files say, its intervals those of a plain
computation."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import roc_auc_score
from transformers import AutoModel

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import build_table, derive_table
from mbsd.checkpoint.resume import weights_folder
from mbsd.config.parse import parse_scoring
from mbsd.errors import UserError
from mbsd.scoring.paired import resampled_items
from mbsd.tools.studies.compare.paper_numbers import PAPER
from mbsd.tools.studies.compare.run import run_compare
from mbsd.tools.studies.compare.settings import CompareConfig
from mbsd.tools.studies.paper.run import latency_command, table_commands
from mbsd.tools.studies.paper.settings import PaperConfig
from tests.conftest import Shop
from tests.ranks import command, launch
from tests.settings import write_ds_config
from tests.studies.test_studies import ADAM, SIZES, kill_when, said, study
from tests.studies.warm import Server

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "dropout": 0.0,
    "vocab_size": 600,
}  # fmt: skip
TASKS = ("attributes", "alignment", "classification")
VIEWS = {"BERT": "text", "MBSD": "full"}
RESAMPLES = 40


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Server:
    return Server(tmp_path_factory.mktemp("warm"), ranks=2)


def tables_of(shop: Shop, folder: Path) -> dict[str, str]:
    """Of the three tasks; the labels of alignment are there to be scored against, and say nothing of the items."""
    catalog = Catalog(shop.catalog)
    derive_table("categories", catalog, folder / "categories.parquet")
    records = [catalog.record(item) for item in range(len(catalog))]
    rows = []
    for number, (first, second) in enumerate(zip(records[::2], records[1::2], strict=True)):
        row = {"item_id_a": first.item_id, "item_id_b": second.item_id, "label": number // 8 % 2}
        rows.append(row | {"split": ("validation", "test", *["train"] * 6)[number % 8]})
    source = folder / "alignment.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_table("alignment", source, catalog, folder / "alignment.parquet")
    made = {kind: str(folder / f"{kind}.parquet") for kind in ("categories", "alignment")}
    return {"catalog": str(shop.catalog), "attributes": str(shop.tags), **made}


def study_tree(shop: Shop, folder: Path) -> dict[str, Any]:
    data = {"catalog": "nowhere", **SIZES}
    run = {"dir": "unused", "max_steps": 3, "save_every": 1, "log_every": 1, "validate_every": 0}
    trees = {
        "masked": {"stage": "masked", "run": run, "data": data, "model": {"architecture": "another"}},
        "task": {"run": run, "data": {**data, "table": "nowhere"}},
    }
    for name, tree in trees.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    ds_config = str(write_ds_config(folder, optimizer=ADAM))
    files = {name: {"config": str(folder / f"{name}.yaml"), "deepspeed_config": ds_config} for name in trees}
    own = {"patchify_strides": [4, 2], "patchify_channels": [16]}
    return {
        "out": str(folder / "study"), "tables": tables_of(shop, folder), "model": SMALL,
        "models": [
            {"name": "BERT", "architecture": "bert", "view": "text", "pretrain": []},
            {"name": "MBSD", "architecture": "mbsd", "model": own, "pretrain": [files["masked"]]},
        ],
        "tasks": dict.fromkeys(TASKS, files["task"]), "minutes": 0.02, "measure_steps": 4, "bootstrap": RESAMPLES,
        "evaluate": {"micro_batch": 128}, "latency_steps": 2,
    }  # fmt: skip


@pytest.fixture(scope="module")
def config(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    (folder / "study.yaml").write_text(yaml.safe_dump(study_tree(shop, folder)))
    return folder / "study.yaml"


@pytest.fixture(scope="module")
def compared(config: Path, warm: Server) -> Iterator[tuple[Path, str]]:
    """Killed in a pre-training behind a checkpoint, then left alone."""
    out = config.parent / "study"
    words = ["--config", config, "--launch.command", warm.command]
    kill_when(study("compare", *words), out / "seed-0/mbsd/pretrain-1/checkpoints/step-00000001")
    assert not (out / "compare.html").exists()
    yield out, said(study("compare", *words))


def scores_of(out: Path, model: str, task: str) -> dict[str, float]:
    found = json.loads((out / f"seed-0/{model.lower()}/{task}/test.json").read_text())
    assert list(found["views"]) == [VIEWS[model]]
    scores: dict[str, float] = found["views"][VIEWS[model]]["all"]
    return scores


@pytest.mark.distributed
def test_a_killed_comparison_goes_on(compared: tuple[Path, str], config: Path, warm: Server) -> None:
    out, _ = compared
    names = [name for _, name in warm.started]
    assert (
        names.count("seed-0/mbsd/pretrain-1") == 2
        and "resuming" in (out / "logs/seed-0/mbsd/pretrain-1.log").read_text()
    )
    others = [name for name in names if name != "seed-0/mbsd/pretrain-1"]
    assert len(others) == len(set(others)) == 1 + 2 * 3 * 2, (
        "measured once; two models, three tasks, trained and scored"
    )
    page = (out / "compare.html").read_bytes()
    words = ["--config", str(config), "--launch.command", warm.command]
    run_compare(parse_scoring(CompareConfig, words))
    assert len(warm.started) == len(names) and (out / "compare.html").read_bytes() == page
    with pytest.raises(UserError, match=r"minutes was 0\.02 when this study was begun and is 3\.0 now"):
        run_compare(parse_scoring(CompareConfig, [*words, "--minutes=3"]))


@pytest.mark.distributed
def test_pre_training_takes_the_minutes(compared: tuple[Path, str]) -> None:
    out, _ = compared
    measured = yaml.safe_load((out / "settings/steps/mbsd.yaml").read_text())["pretrain-1"]
    assert measured["steps"] == max(1, round(60 * 0.02 / measured["seconds_of_step"]))
    ran = yaml.safe_load((out / "seed-0/mbsd/pretrain-1/config.yaml").read_text())
    assert ran["run"]["max_steps"] == measured["steps"]
    tables = yaml.safe_load((out.parent / "study.yaml").read_text())["tables"]
    assert set(ran["data"]["held_out"]) == set(tables.values()) - {tables["catalog"]}
    (line,) = [line for line in csv.DictReader((out / "models.csv").open()) if line["model"] == "MBSD"]
    assert line["pretrain_steps"] == str(measured["steps"]) and float(line["pretrain_minutes"]) > 0


@pytest.mark.distributed
def test_the_tables_are_what_the_scores_say(compared: tuple[Path, str]) -> None:
    out, screen = compared
    lines = list(csv.DictReader((out / "scores.csv").open()))
    assert len(lines) == 2 * (5 + 5 + 2)
    for line in lines:
        assert float(line["value"]) == scores_of(out, line["model"], line["task"])[line["metric"]]
    page = (out / "compare.html").read_text()
    for model in VIEWS:
        for task in TASKS:
            ours = [f"{100 * value:.2f}" for value in scores_of(out, model, task).values()]
            row = "".join(f"<td>{cell}</td>" for cell in [model, "ours", *ours])
            assert f"<tr>{row}</tr>" in page and ours[-1] in screen
        paper = PAPER["attributes"]["IAVP-F"][model].values()
        row = "".join(f"<td>{cell}</td>" for cell in [model, "paper, IAVP-F", *(f"{value:.2f}" for value in paper)])
        assert f'<tr class="paper">{row}</tr>' in page
        assert f"{PAPER['classification'][''][model]['accuracy']:.2f}" in (out / "compare.md").read_text()
    assert [float(n) for n in re.findall(r"<td>paper</td><td>([\d.]+)</td>", page)] == [83.69, 84.73, 91.45, 92.20]


@pytest.mark.distributed
def test_intervals_are_those_of_a_direct_computation(compared: tuple[Path, str]) -> None:
    out, _ = compared
    lines = list(csv.DictReader((out / "pairs.csv").open()))
    assert [(line["task"], line["first"], line["other"]) for line in lines] == [
        (task, *pair) for task in TASKS for pair in combinations(VIEWS, 2)
    ]
    for line in lines:
        task, values = line["task"], []
        answers = {
            model: pq.read_table(out / f"seed-0/{model.lower()}/{task}/test.parquet").to_pydict() for model in VIEWS
        }
        items = np.array(answers["BERT"]["item_a" if task == "alignment" else "item"])
        for drawn in resampled_items(items, RESAMPLES):
            rows = np.repeat(np.arange(len(items)), drawn.astype(int))
            values.append({model: metric(task, of_model, VIEWS[model], rows) for model, of_model in answers.items()})
        differences = [of_draw["BERT"] - of_draw["MBSD"] for of_draw in values]
        expected = np.nanquantile(differences[1:], [0.025, 0.975])
        assert [float(line["low"]), float(line["high"])] == pytest.approx(expected.tolist(), abs=1e-6)
        key = "accuracy" if task == "classification" else "roc_auc"
        exact = scores_of(out, "BERT", task)[key] - scores_of(out, "MBSD", task)[key]
        assert float(line["difference"]) == pytest.approx(exact)


def metric(task: str, answers: dict[str, list[Any]], view: str, rows: np.ndarray) -> float:
    labels = np.array(answers["label"])[rows]
    if task == "classification":
        return float(np.mean(labels == np.array(answers[f"answer_{view}"])[rows]))
    if len(set(labels.tolist())) < 2:
        return float("nan")
    return float(roc_auc_score(labels == "yes", np.array(answers[f"probability_{view}"])[rows]))


@pytest.mark.distributed
def test_costs_and_vectors_are_of_the_trained_models(compared: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = compared
    costs = {line["model"]: line for line in csv.DictReader((out / "models.csv").open())}
    for model, view in VIEWS.items():
        run = out / f"seed-0/{model.lower()}/attributes"
        backbone = sum(p.numel() for p in AutoModel.from_pretrained(weights_folder(str(run))).parameters())
        head = 32 + 1
        assert int(costs[model]["parameters"]) == backbone + head
        assert float(costs[model]["flops"]) > 0 and float(costs[model]["latency_ms"]) > 0
        words = ["--model", run, "--out", tmp_path / model, "--data.catalog", out.parent / "unused", f"--view={view}"]
        data = yaml.safe_load((run / "config.yaml").read_text())["data"]
        words[5] = data["catalog"]
        launch(2, [*words, "--data.image_size=32", "--data.num_workers=0", "--split=test"], tmp_path / f"{model}_log",
               launcher="embed")  # fmt: skip
        assert (tmp_path / model / "manifest.json").exists()
    assert float(costs["MBSD"]["flops"]) > float(costs["BERT"]["flops"]), "it reads the picture too"


@pytest.mark.distributed
def test_the_paper_on_one_page(config: Path, shop: Shop, warm: Server) -> None:
    """With one model and one row of Table 6, whose run Fig. 7 shares."""
    folder = config.parent
    tree = yaml.safe_load(config.read_text())
    stage = tree["models"][1]["pretrain"][0]
    sizes = {f"model.{name}": value for name, value in {**SMALL, **tree["models"][1]["model"]}.items()}
    stage = stage | {"settings": sizes | {"model.architecture": "mbsd"}}
    rows = {"stage1": stage, "stage2": stage, "finetune": tree["tasks"]["attributes"], "rows": 2, "out": "unused"}
    rows |= {"evaluate": {"micro_batch": 128}, "launch": {"command": warm.command, "cpu_ranks": None}}
    (folder / "rows.yaml").write_text(yaml.safe_dump(rows))
    tree |= {"tasks": {"attributes": tree["tasks"]["attributes"]}, "launch": rows["launch"], "bootstrap": 0}
    (folder / "few.yaml").write_text(yaml.safe_dump({**tree, "models": tree["models"][:1], "minutes": None}))
    before = len(warm.started)
    words = ["--out", folder / "paper", "--catalog", shop.catalog, "--min_items=1", "--compare", folder / "few.yaml",
             "--ablation", folder / "rows.yaml", "--missing", folder / "rows.yaml", "--latency_models=[bert-encoder]",
             "--latency_batches=[1]"]  # fmt: skip
    settings = parse_scoring(PaperConfig, list(map(str, words)))
    for one in (*table_commands(settings)[1], latency_command(settings)):  # in processes that start faster
        assert command(*one.words).returncode == 0 and one.done.exists()
    launch(1, words, folder / "paper_log", launcher="paper")
    started = [name for _, name in warm.started[before:]]
    assert len(started) == 2 + 2 + 2 and sum(launcher == "finetune" for launcher, _ in warm.started[before:]) == 2
    page = (folder / "paper/paper.html").read_text()
    for title in ("Table 1", "Table 6", "Fig. 7", "Fig. 8"):
        assert f"<h2>{title}: " in page
    (line,) = csv.DictReader((folder / "paper/table6/ablation.csv").open())
    assert f"<td>{100 * float(line['roc_auc']):.2f}</td>" in page and "81.74 ± 0.30" in page
    assert page.count("data:image/png;base64,") == 3
    launch(1, words, folder / "paper_log", launcher="paper")
    assert len(warm.started) == before + len(started) and (folder / "paper/paper.html").read_text() == page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tables": None}, "tables and shop: neither is set"),
        ({"minutes": 0}, "minutes=0.0: expected more than 0"),
        ({"only": "BERT, CLIP"}, "only=BERT, CLIP: CLIP is none of"),
        ({"models": [{"name": name, "architecture": "bert"} for name in ("A b", "a-B")]}, "none like another"),
        ({"tasks": {}}, "no task in common"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_meant(change: dict[str, Any], message: str, shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**study_tree(shop, tmp_path), **change}))
    with pytest.raises(UserError, match=message):
        parse_scoring(CompareConfig, ["--config", str(tmp_path / "study.yaml")])
