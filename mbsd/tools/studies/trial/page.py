"""Which files of a trial hold whose answers: what its page and the margins of its table are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mbsd.tools.studies.trial.settings import STARTS, TASKS, TITLES, Run, Trial
from mbsd.tools.studies.trial_report.inputs import Comparison, Scored
from mbsd.tools.studies.trial_report.page import TrialPage

# Run.before, and what follows from it for who has seen which labels.
ATTRIBUTES_START = (
    "Attributes start from the model that was fine-tuned on categories; the floors of attributes have learned those "
    "labels too."
)


def model_name(start: str) -> str:
    """A kind of model as shown."""
    return f"MBSD, {STARTS[start]}"


def page_of(trial: Trial, out: Path) -> TrialPage:
    """What the page shows: categories before attributes, masked titles first, for there a model has to look."""
    shares = sorted(trial.label_shares, reverse=True)
    comparisons = [
        comparison(trial, out, Run(titles, task, trial.seeds[0], share=share))
        for share in shares
        for task in trial.tasks
        for titles in reversed(TITLES)
    ]
    return TrialPage(Path(trial.source).name, tuple(comparisons))


def comparison(trial: Trial, out: Path, one: Run) -> Comparison:
    """All starts and seeds of a task, its titles and its share of the labels, beside the floors of the same table.

    The floors have read the labels that the models have: those of the table's training rows, and under attributes those
    of categories, which the models have in them through the one that they start from.

    Args:
        one: a run with these; its start and seed do not matter.
    """
    folder = out / one.titles
    floors = folder / f"{one.table}_floors.json"
    labels = f", {one.share:.0%} of the labels" if one.share < 1 else ""
    stage1 = Run(one.titles, "stage1", trial.seeds[0])
    assert one.kind != "stage1"
    return Comparison(
        f"{TASKS[one.kind].capitalize()}, titles {TITLES[one.titles]}{labels}",
        one.kind,
        folder / "catalog",
        folder / f"{one.table}.parquet",
        floors,
        floors.with_suffix(".parquet"),
        tuple(_models(trial, out, one)),
        clustering=_clustering(trial, folder / f"{stage1.clusters}.json", one),
        labels=one.share,
        note=ATTRIBUTES_START if one.kind == "attributes" else "",
    )


def _models(trial: Trial, out: Path, one: Run) -> Iterator[Scored]:
    for start in trial.starts:
        for seed in trial.seeds:
            run = replace(one, start=start, seed=seed, is_first=seed == trial.seeds[0])
            scores = out / run.titles / f"{run.result}.json"
            yield Scored(model_name(start), scores, run.folder(out), start == "pretrained")


def _clustering(trial: Trial, scores: Path, one: Run) -> Path | None:
    return scores if one.kind == "classification" and "pretrained" in trial.starts else None
