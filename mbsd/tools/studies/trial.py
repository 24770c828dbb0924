"""`mbsd trial`: what a small model makes of a shop's own items, beside floors; each step a command a user would type.

Titles often name the category and the colour that the tasks ask for. So everything is done twice, with titles as they
are and with titles that no longer say so, and each view is scored by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from mbsd.tools.studies.commands import ROOT, Commands, LaunchConfig, in_clone
from mbsd.tools.studies.steps import same_settings
from mbsd.tools.studies.study import start_commands, tell

TITLES = {"plain": "as they are", "masked": "masked"}
FLOORS = {"tfidf": "TF-IDF", "colours": "colour histogram", "hog": "HOG", "all": "TF-IDF, colours, HOG"}
VIEWS = {"full": "title and image", "text": "title", "image": "image"}
COLUMNS = ("attributes, ROC-AUC", "classification, accuracy", "macro-F1", "clustering, NMI", "ARI", "purity")
WIDTH = 150  # of the table, letters; narrower, names would be cut
TASKS = {"attributes": ("attributes", "small_attributes"), "classification": ("categories", "small_classification")}


@dataclass(frozen=True)
class Trial:
    """What `mbsd trial` is given; `source` and `images` as of `mbsd catalog build`.

    Attributes:
        mask_attributes: attributes whose values are taken out of the masked titles, beside the categories.
        min_items: categories with fewer items are left out.
        pretrain_steps, finetune_steps: of stage 1, and of each of the fine-tunings.
        from_scratch: fine-tune a model that has not been pre-trained too.
    """

    source: str
    images: str
    mask_attributes: tuple[str, ...]
    min_items: int
    pretrain_steps: int
    finetune_steps: int
    from_scratch: bool
    seed: int


@dataclass(frozen=True)
class Step:
    """A command, and what is there when it has been done; of `launchers/LAUNCHER.py`, or of `mbsd`."""

    name: str
    made: Path
    words: list[object]
    launcher: str | None = None


def run_trial(trial: Trial, out: Path, launch: LaunchConfig) -> None:
    """Build, pre-train, fine-tune, score and tabulate below `out`; what is there already is not done again.

    Raises:
        UserError: `out` holds a trial with other settings.
    """
    same_settings(out, "trial", json.loads(json.dumps(asdict(trial))), "--out")
    commands = replace(start_commands(out, launch), console=Console(soft_wrap=True, width=WIDTH))
    for step in steps(trial, out):
        if step.made.exists():
            commands.console.print(f"[dim]{step.made}: already there", highlight=False)
        elif step.launcher is not None:
            commands.launcher(step.name, step.launcher, *step.words)
        else:
            commands.mbsd(step.name, *step.words)
    tabulate(commands, trial, out)


def steps(trial: Trial, out: Path) -> Iterator[Step]:
    """Everything that is done, in order."""
    out = out.resolve()
    masked, stage1 = out / "items_masked.jsonl", out / "stage1"
    named = [word for name in trial.mask_attributes for word in ("--attribute", name)]
    yield Step("mask", masked, ["catalog", "mask", trial.source, *named, "--out", masked])
    for titles, items in zip(TITLES, (trial.source, masked), strict=True):
        catalog = out / titles / "catalog"
        made = catalog / "catalog.json"
        yield Step(f"{titles}_build", made, ["catalog", "build", items, "--images", trial.images, "--out", catalog])
        for kind, more in (("attributes", []), ("categories", ["--min-items", trial.min_items])):
            table, floors = out / titles / f"{kind}.parquet", out / titles / f"{kind}_floors.json"
            derive: list[object] = ["tables", "derive", kind, "--catalog", catalog, "--out", table, *more]
            yield Step(f"{titles}_{kind}", table, [*derive, "--seed", trial.seed])
            yield Step(
                f"{titles}_{kind}_floors", floors, ["floors", "--catalog", catalog, "--table", table, "--out", floors]
            )
    words = ["--config", _config("small_stage1")]
    words += ["--deepspeed_config", in_clone("ds_configs/cpu_stage1.json"), "--run.dir", str(stage1)]
    words += ["--run.seed", str(trial.seed), "--run.max_steps", str(trial.pretrain_steps)]
    words += ["--run.validate_every", str(max(1, trial.pretrain_steps // 5))]
    yield Step("stage1", stage1 / "DONE", [*words, "--data.catalog", out / "plain" / "catalog"], "pretrain")
    for titles in TITLES:
        yield from _scored(trial, out, titles, "clustering", "categories", stage1, ["--task", "clustering"])
        for task, (kind, config) in TASKS.items():
            for start in _starts(trial):
                run = out / titles / f"{task}_{start}"
                words = ["--config", _config(config)]
                words += ["--deepspeed_config", in_clone("ds_configs/cpu_finetune.json"), "--run.dir", str(run)]
                words += ["--run.seed", str(trial.seed), "--run.max_steps", str(trial.finetune_steps)]
                words += ["--run.validate_every", str(max(1, trial.finetune_steps // 5))]
                words += ["--data.catalog", str(out / titles / "catalog")]
                words += ["--data.table", str(out / titles / f"{kind}.parquet")]
                words += ["--run.init_from", str(stage1)] if start == "pretrained" else _drawn(stage1)
                yield Step(f"{titles}_{task}_{start}", run / "DONE", [*words], "finetune")
                yield from _scored(trial, out, titles, f"{task}_{start}", kind, run, [])


def _scored(
    trial: Trial, out: Path, titles: str, name: str, kind: str, model: Path, more: list[object]
) -> Iterator[Step]:
    """The evaluation of a model on the test split of a table, each view by itself."""
    scores = out / titles / f"{name}.json"
    words: list[object] = ["--model", model, "--out", scores, *more]
    words += ["--data.catalog", out / titles / "catalog", "--data.table", out / titles / f"{kind}.parquet"]
    words += ["--data.image_size", 64, "--data.num_workers", 1, "--bootstrap", 200, "--micro_batch", 128]
    yield Step(f"{titles}_{name}_scores", scores, words, "evaluate")


def _starts(trial: Trial) -> tuple[str, ...]:
    return ("pretrained", "scratch") if trial.from_scratch else ("pretrained",)


def _config(name: str) -> str:
    return in_clone(f"launchers/configs/{name}.yaml")


def _drawn(stage1: Path) -> list[str]:
    """Settings of a model that starts from nothing: stage 1's sizes and its words."""
    model = yaml.safe_load((ROOT / "launchers/configs/small_stage1.yaml").read_text())["model"]
    sizes = [word for name, value in model.items() for word in (f"--model.{name}", json.dumps(value))]
    return ["--run.init_from", "null", "--data.tokenizer", str(stage1 / "tokenizer"), *sizes]


def tabulate(commands: Commands, trial: Trial, out: Path) -> None:
    """Gather the scores into a table on the screen, `summary.json` and `summary.md`."""
    rows = [*_floor_rows(out), *(row for start in _starts(trial) for row in _model_rows(out, start))]
    shown = Table()
    for n, heading in enumerate(("model", "reads", "titles", *COLUMNS)):
        shown.add_column(heading, justify="left" if n < 3 else "right", no_wrap=n < 3)
    for row in rows:
        values = ("" if row[name] is None else f"{row[name]:.3f}" for name in COLUMNS)
        shown.add_row(row["model"], row["reads"], row["titles"], *values)
    (out / "summary.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    tell(commands, out / "summary.md", "Trial", [("Scores of the test split.", shown)])


def _floor_rows(out: Path) -> Iterator[dict[str, Any]]:
    for titles, told in TITLES.items():
        tags, classes = (_read(out / titles / f"{kind}_floors.json")["floors"] for kind in ("attributes", "categories"))
        for name, floor in FLOORS.items():
            picture_alone = name in ("colours", "hog")
            if picture_alone and titles != "plain":
                continue  # the same pictures
            reads = VIEWS["image"] if picture_alone else VIEWS["text" if name == "tfidf" else "full"]
            clustering = classes[name]["clustering"]
            yield _row(floor, reads, "" if picture_alone else told, tags[name], classes[name], clustering)


def _model_rows(out: Path, start: str) -> Iterator[dict[str, Any]]:
    name = {"pretrained": "MBSD, pre-trained", "scratch": "MBSD, from scratch"}[start]
    for titles, told in TITLES.items():
        scores = {task: _read(out / titles / f"{task}_{start}.json")["views"] for task in TASKS}
        clusters = _read(out / titles / "clustering.json")["views"] if start == "pretrained" else {}
        for view, reads in VIEWS.items():
            if view == "image" and titles != "plain":
                continue
            tags, classes = (scores[task][view]["all"] for task in TASKS)
            grouped = clusters.get(view, {}).get("all", {})
            yield _row(name, reads, "" if view == "image" else told, tags, classes, grouped)


def _row(
    model: str, reads: str, titles: str, tags: dict[str, Any], classes: dict[str, Any], clusters: dict[str, Any]
) -> dict[str, Any]:
    values = [tags["roc_auc"], classes["accuracy"], classes["macro_f1"]]
    values += [clusters.get(name) for name in ("nmi", "ari", "purity")]
    return {"model": model, "reads": reads, "titles": titles, **dict(zip(COLUMNS, values, strict=True))}


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
