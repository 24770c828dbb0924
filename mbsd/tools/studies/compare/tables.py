"""The tables of a comparison: Tables 1, 4 and 5 with the paper's numbers, each pair of models, and what each costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from mbsd.tools.studies.compare.costs import Costs
from mbsd.tools.studies.compare.paper_numbers import PAPER
from mbsd.tools.studies.compare.plan import Trained
from mbsd.tools.studies.compare.scores import METRICS, Pair, Score
from mbsd.tools.studies.study import percent, write_csv
from mbsd.tools.studies.study_page.page import Section, add_row, new_table

TITLES = {
    "attributes": "Table 1: attribute prediction",
    "alignment": "Table 4: product alignment",
    "classification": "Table 5: classification",
}
SHOWN = {
    "accuracy": "Accuracy", "precision": "P", "recall": "R", "f1": "F1", "roc_auc": "ROC-AUC", "macro_f1": "Macro-F1",
}  # fmt: skip


@dataclass(frozen=True)
class Pretraining:
    """One model's pre-training with one seed.

    Attributes:
        steps: of the optimizer, of each stage.
        minutes: by the clock, without starting, validating and saving.
        core_minutes: of the processes' cores, all in all; None on GPUs, or where it was not counted.
    """

    model: str
    seed: int
    steps: tuple[int, ...]
    minutes: float
    core_minutes: float | None


@dataclass(frozen=True)
class Found:
    """All that a comparison has found."""

    cells: Sequence[Trained]
    scores: Sequence[Score]
    pairs: Sequence[Pair]
    costs: Mapping[str, Costs]
    pretraining: Sequence[Pretraining]

    @property
    def models(self) -> list[str]:
        """Names, in order."""
        return list(self.costs)

    def values(self, task: str, model: str, metric: str) -> list[float]:
        """Of a metric, a value a seed."""
        return [
            score.value
            for score in self.scores
            if (score.cell.task, score.cell.model.name, score.metric) == (task, model, metric)
        ]


def sections(found: Found, resamples: int) -> Iterator[Section]:
    """What the page and the Markdown show."""
    yield Section("What each model costs", ((_told_costs(found), _costs(found)),))
    for task, title in TITLES.items():
        if not any(cell.task == task for cell in found.cells):
            continue
        seeds = len({cell.seed for cell in found.cells})
        told = f"Test rows, in percent{f', mean ± standard deviation over {seeds} seeds' if seeds > 1 else ''}."
        tables = [(told, _scores(found, task))]
        pairs = [pair for pair in found.pairs if pair.task == task]
        if pairs:
            tables.append((_told_pairs(task, pairs, resamples), _pairs(pairs)))
        yield Section(title, tuple(tables))


def _scores(found: Found, task: str) -> Table:
    metrics = METRICS[task]
    table = new_table("model", "whose", *(SHOWN[metric] for metric in metrics))
    for model in found.models:
        add_row(table, model, "ours", *(percent(found.values(task, model, metric)) for metric in metrics))
        for dataset, of_models in PAPER[task].items():
            if model in of_models:
                numbers = [
                    f"{of_models[model][metric]:.2f}" if metric in of_models[model] else "" for metric in metrics
                ]
                add_row(table, model, f"paper{f', {dataset}' if dataset else ''}", *numbers, of_paper=True)
    return table


def _told_pairs(task: str, pairs: Sequence[Pair], resamples: int) -> str:
    items = "pairs, drawn by their first item" if task == "alignment" else "items, each with all its rows"
    return (
        f"{SHOWN[pairs[0].metric]} of the first model less that of the other, in percent, the mean over pairs of runs "
        f"with the same seed. The interval is a paired bootstrap over the test {items} ({resamples} resamples): it "
        "tells how sure the difference of these models is, not how another seed would train; for that see each pair."
    )


def _pairs(pairs: Sequence[Pair]) -> Table:
    table = new_table("first less other", "difference", "95 % interval", "by seed")
    for pair in pairs:
        interval = pair.found.interval
        ends = "–" if interval is None else " to ".join(f"{100 * end:+.2f}" for end in interval)
        each = ", ".join(f"{100 * value:+.2f}" for value in pair.found.of_pairs)
        add_row(table, f"{pair.first} less {pair.other}", f"{100 * pair.found.mean:+.2f}", ends, each)
    return table


def _told_costs(found: Found) -> str:
    device = next(iter(found.costs.values())).device
    told = (
        "Parameters with the head of a task. FLOPs: matmuls of the forward of one item, the mean over test rows; heads "
        "and embeddings are left out. Latency: a forward of one test row of median length, the median over forwards on "
        f"{device}. Pre-training: optimizer steps of the first seed, and minutes by the clock without starting, "
        "validating and saving, the mean over seeds"
    )
    if any(one.core_minutes is not None for one in found.pretraining):
        told += "; core-minutes are of all processes, all in all, and do not grow where others use the cores too"
    return f"{told}."


def _costs(found: Found) -> Table:
    table = new_table(
        "model", "reads", "parameters", "MFLOPs", "latency, ms", "pre-training, steps", "minutes", "core-minutes"
    )
    views = {cell.model.name: cell.model.view for cell in found.cells}
    reads = {"full": "title and picture", "text": "title", "image": "picture"}
    for name, costs in found.costs.items():
        runs = [one for one in found.pretraining if one.model == name]
        steps = " + ".join(f"{count:,}" for count in runs[0].steps) if runs and runs[0].steps else "none"
        add_row(
            table, name, reads[views[name]], f"{costs.parameters:,}", f"{costs.flops / 1e6:,.1f}",
            f"{costs.milliseconds:.1f}", steps, *_mean_minutes(runs),
        )  # fmt: skip
    return table


def _mean_minutes(runs: Sequence[Pretraining]) -> tuple[str, str]:
    """By the clock, and of cores where they are known."""
    if not runs or not runs[0].steps:
        return "", ""
    cores = [one.core_minutes for one in runs if one.core_minutes is not None]
    clock = sum(one.minutes for one in runs) / len(runs)
    return f"{clock:.2f}", f"{sum(cores) / len(cores):.2f}" if cores else ""


def write_tables(found: Found, out: Path) -> None:
    """Write `scores.csv`, `pairs.csv` and `models.csv`, unrounded."""
    write_csv(
        out / "scores.csv",
        [{"task": score.cell.task, "model": score.cell.model.name, "view": score.cell.model.view,
          "seed": score.cell.seed, "metric": score.metric, "value": score.value} for score in found.scores],
    )  # fmt: skip
    if found.pairs:
        write_csv(
            out / "pairs.csv",
            [{"task": pair.task, "metric": pair.metric, "first": pair.first, "other": pair.other,
              "difference": pair.found.mean, "low": (pair.found.interval or ("", ""))[0],
              "high": (pair.found.interval or ("", ""))[1]} for pair in found.pairs],
        )  # fmt: skip
    write_csv(
        out / "models.csv",
        [{"model": one.model, "seed": one.seed, "parameters": found.costs[one.model].parameters,
          "flops": found.costs[one.model].flops, "latency_ms": found.costs[one.model].milliseconds,
          "device": found.costs[one.model].device, "pretrain_steps": " ".join(map(str, one.steps)),
          "pretrain_minutes": one.minutes, "pretrain_core_minutes": one.core_minutes} for one in found.pretraining],
    )  # fmt: skip
