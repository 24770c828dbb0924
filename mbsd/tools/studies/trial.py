"""`mbsd trial`: what a small model learns from a shop's own items, beside floors; by commands that a user would type.

Titles often name the category and the colour that the tasks ask for. So everything is done twice, with titles as they
are and with titles from which these words are removed, and each view is scored by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from mbsd.config.run_files import DONE
from mbsd.io.files import read_own_json, replace_text
from mbsd.io.settings_text import read_yaml
from mbsd.tools.studies.commands import ROOT, Command, LaunchConfig, in_clone
from mbsd.tools.studies.runner import start_runner
from mbsd.tools.studies.settings_files import same_settings
from mbsd.tools.studies.study import report
from mbsd.tools.studies.trial_page import TrialPage, write_trial_page
from mbsd.tools.trial_report.inputs import Comparison, Scored

TITLES = {"plain": "as they are", "masked": "masked"}
FLOORS = {"tfidf": "TF-IDF", "colours": "colour histogram", "hog": "HOG", "all": "TF-IDF, colours, HOG"}
VIEWS = {"full": "title and image", "text": "title", "image": "image"}
COLUMNS = ("attributes, ROC-AUC", "classification, accuracy", "macro-F1", "clustering, NMI", "ARI", "purity")
MODELS = {"pretrained": "MBSD, pre-trained", "scratch": "MBSD, from scratch"}
WIDTH = 150  # of the table, letters; narrower, names would be cut
TASKS: dict[Literal["attributes", "classification"], tuple[str, str]] = {
    "attributes": ("attributes", "small_attributes"),
    "classification": ("categories", "small_classification"),
}


@dataclass(frozen=True)
class Trial:
    """Settings of `mbsd trial`; `source` and `images` are those of `mbsd catalog build`.

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


def run_trial(trial: Trial, out: Path, launch: LaunchConfig) -> None:
    """Build, pre-train, fine-tune, score and tabulate below `out`; what is there already is not done again.

    Raises:
        UserError: `out` holds a trial with other settings.
    """
    same_settings(out, "trial", json.loads(json.dumps(asdict(trial))), "--out")
    runner = start_runner(out, launch, WIDTH)
    runner.run(list(trial_commands(trial, out.resolve())))
    tabulate(runner.console, trial, out)
    write_trial_page(page_of(trial, out), out / "trial.html")
    runner.console.print(f"{out / 'trial.html'}", markup=False, highlight=False)


def trial_commands(trial: Trial, out: Path) -> Iterator[Command]:
    """All commands, in order."""
    masked, stage1 = out / "items_masked.jsonl", out / "stage1"
    named = [word for name in trial.mask_attributes for word in ("--attribute", name)]
    yield Command("mask", masked, ("catalog", "mask", trial.source, *named, "--out", masked))
    for titles, items in zip(TITLES, (trial.source, masked), strict=True):
        yield from _tables(trial, out / titles, items)
    yield Command(
        "stage1", stage1 / DONE,
        (*_run_words(trial, "small_stage1", "cpu_stage1", trial.pretrain_steps), "--run.dir", stage1,
         "--data.catalog", out / "plain/catalog"),
        "pretrain",
    )  # fmt: skip
    for titles in TITLES:
        clustering = _evaluation(out / titles, "clustering", "categories", stage1)
        yield replace(clustering, words=(*clustering.words, "--task", "clustering"))
        for task, (kind, config) in TASKS.items():
            for start in _starts(trial):
                run = out / titles / f"{task}_{start}"
                weights = ("--run.init_from", stage1) if start == "pretrained" else drawn_words(stage1)
                yield Command(
                    f"{titles}_{task}_{start}", run / DONE,
                    (*_run_words(trial, config, "cpu_finetune", trial.finetune_steps), "--run.dir", run,
                     *_data_words(out / titles, kind), *weights),
                    "finetune",
                )  # fmt: skip
                yield _evaluation(out / titles, f"{task}_{start}", kind, run)


def _tables(trial: Trial, folder: Path, items: object) -> Iterator[Command]:
    """Catalogue, task tables and floors for one way of writing the titles, which names `folder`."""
    titles, catalog = folder.name, folder / "catalog"
    yield Command(
        f"{titles}_build", catalog / "catalog.json",
        ("catalog", "build", items, "--images", trial.images, "--out", catalog),
    )  # fmt: skip
    for kind, more in (("attributes", ()), ("categories", ("--min-items", trial.min_items))):
        table, floors = folder / f"{kind}.parquet", folder / f"{kind}_floors.json"
        yield Command(
            f"{titles}_{kind}", table,
            ("tables", "derive", kind, "--catalog", catalog, "--out", table, *more, "--seed", trial.seed),
        )  # fmt: skip
        yield Command(
            f"{titles}_{kind}_floors", floors,
            ("floors", "--catalog", catalog, "--table", table, "--out", floors,
             "--answers", floors.with_suffix(".parquet")),
        )  # fmt: skip


def _evaluation(folder: Path, name: str, kind: str, model: Path) -> Command:
    """Scores `folder/NAME.json` of a model on the test split of a table, each view by itself."""
    scores = folder / f"{name}.json"
    words = ("--model", model, "--out", scores, *_data_words(folder, kind), "--data.image_size", 64,
             "--data.num_workers", 1, "--bootstrap", 200, "--micro_batch", 128)  # fmt: skip
    return Command(f"{folder.name}_{name}_scores", scores, words, "evaluate")


def _run_words(trial: Trial, config: str, ds_config: str, steps: int) -> tuple[object, ...]:
    return (
        "--config", in_clone(f"launchers/configs/{config}.yaml"),
        "--deepspeed_config", in_clone(f"ds_configs/{ds_config}.json"), "--run.seed", trial.seed,
        "--run.max_steps", steps, "--run.validate_every", max(1, steps // 5),
    )  # fmt: skip


def _data_words(folder: Path, kind: str) -> tuple[object, ...]:
    return "--data.catalog", folder / "catalog", "--data.table", folder / f"{kind}.parquet"


def drawn_words(stage1: Path) -> tuple[object, ...]:
    """Options of a fine-tuning without pre-training: weights are drawn in stage 1's sizes, with its tokenizer."""
    model = read_yaml(ROOT / "launchers/configs/small_stage1.yaml")["model"]
    sizes = [word for name, value in model.items() for word in (f"--model.{name}", json.dumps(value))]
    return "--run.init_from", "null", "--data.tokenizer", stage1 / "tokenizer", *sizes


def _starts(trial: Trial) -> tuple[str, ...]:
    return ("pretrained", "scratch") if trial.from_scratch else ("pretrained",)


def tabulate(console: Console, trial: Trial, out: Path) -> None:
    """Gather the scores into a table on the screen, `summary.json` and `summary.md`."""
    rows = [*_floor_rows(out), *(row for start in _starts(trial) for row in _model_rows(out, start))]
    shown = Table()
    for n, heading in enumerate(("model", "reads", "titles", *COLUMNS)):
        shown.add_column(heading, justify="left" if n < 3 else "right", no_wrap=n < 3)
    for row in rows:
        values = ("" if row[name] is None else f"{row[name]:.3f}" for name in COLUMNS)
        shown.add_row(row["model"], row["reads"], row["titles"], *values)
    replace_text(out / "summary.json", json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    report(console, out / "summary.md", "Trial", [("Scores of the test split.", shown)])


def page_of(trial: Trial, out: Path) -> TrialPage:
    """What the page shows: categories before attributes, masked titles first, for there a model has to look."""
    comparisons = []
    for task, (kind, _) in reversed(TASKS.items()):
        for titles, shown in reversed(TITLES.items()):
            folder = out / titles
            models = tuple(
                Scored(
                    MODELS[start], folder / f"{task}_{start}.json", folder / f"{task}_{start}", start == "pretrained"
                )
                for start in _starts(trial)
            )
            floors = folder / f"{kind}_floors.json"
            comparisons.append(
                Comparison(
                    f"{kind.capitalize()}, titles {shown}",
                    task,
                    folder / "catalog",
                    folder / f"{kind}.parquet",
                    floors,
                    floors.with_suffix(".parquet"),
                    models,
                    clustering=folder / "clustering.json" if task == "classification" else None,
                )  # fmt: skip
            )
    return TrialPage(Path(trial.source).name, tuple(comparisons))


def _floor_rows(out: Path) -> Iterator[dict[str, Any]]:
    for titles, shown in TITLES.items():
        tags, classes = (_read(out / titles / f"{kind}_floors.json")["floors"] for kind in ("attributes", "categories"))
        for name, floor in FLOORS.items():
            picture_alone = name in ("colours", "hog")
            if picture_alone and titles != "plain":
                continue  # the same pictures
            reads = VIEWS["image"] if picture_alone else VIEWS["text" if name == "tfidf" else "full"]
            clustering = classes[name]["clustering"]
            yield _row(floor, reads, "" if picture_alone else shown, tags[name], classes[name], clustering)


def _model_rows(out: Path, start: str) -> Iterator[dict[str, Any]]:
    name = MODELS[start]
    for titles, shown in TITLES.items():
        scores = {task: _read(out / titles / f"{task}_{start}.json")["views"] for task in TASKS}
        clusters = _read(out / titles / "clustering.json")["views"] if start == "pretrained" else {}
        for view, reads in VIEWS.items():
            if view == "image" and titles != "plain":
                continue
            tags, classes = (scores[task][view]["all"] for task in TASKS)
            grouped = clusters.get(view, {}).get("all", {})
            yield _row(name, reads, "" if view == "image" else shown, tags, classes, grouped)


def _row(
    model: str, reads: str, titles: str, tags: dict[str, Any], classes: dict[str, Any], clusters: dict[str, Any]
) -> dict[str, Any]:
    values = [tags["roc_auc"], classes["accuracy"], classes["macro_f1"]]
    values += [clusters.get(name) for name in ("nmi", "ari", "purity")]
    return {"model": model, "reads": reads, "titles": titles, **dict(zip(COLUMNS, values, strict=True))}


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_own_json(path, "remove it: the same command makes it again")
    return found
