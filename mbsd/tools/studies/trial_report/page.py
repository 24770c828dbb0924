"""The page of `mbsd trial`: one HTML file with everything in it, so that it can be sent and needs no server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from mbsd.io.files import read_own_json, replace_text
from mbsd.tools.studies.trial_report.advice import rules
from mbsd.tools.studies.trial_report.classes import by_class
from mbsd.tools.studies.trial_report.curves import draw_loss, draw_metric, read_run, shown_minutes
from mbsd.tools.studies.trial_report.disputes import Disputes, find_disputes
from mbsd.tools.studies.trial_report.findings import Findings, fewest_labels
from mbsd.tools.studies.trial_report.inputs import AGAIN, VIEWS, Compared, Comparison, read_comparison, shown_floor
from mbsd.tools.studies.trial_report.margins import METRICS, RESAMPLES, SHOWN, Margin, floor_values, margin

TEMPLATE = "page.html.j2"
CLUSTERING = {"nmi": "NMI", "ari": "ARI", "purity": "purity"}


@dataclass(frozen=True)
class TrialPage:
    """What the page is made of.

    Attributes:
        subtitle: one line about the trial, say the file of its items.
        comparisons: one or more, the most telling first.
        resamples: of the test items, behind each interval.
    """

    subtitle: str
    comparisons: tuple[Comparison, ...]
    resamples: int = RESAMPLES


@dataclass(frozen=True)
class Clusters:
    """k-means on a view's vectors beside the floor of the best NMI that reads it: (as shown, model, floor) each."""

    view: str
    floor: str
    values: list[tuple[str, float, float]]


@dataclass(frozen=True)
class Section:
    """A comparison as the page has it.

    Attributes:
        facts: what the table holds: (name, number).
        lines: model -> a margin for each view and metric.
        floors: (as shown, what it reads, a value for each metric).
        scale: the largest end of an interval, for the bars.
        disputes: of the first view with pictures, of the others without.
        charts: SVG in data URIs, with what they show.
    """

    given: Comparison
    facts: list[tuple[str, str]]
    lines: dict[str, list[Margin]]
    floors: list[tuple[str, str, list[float]]]
    scale: float
    clusters: list[Clusters]
    disputes: list[Disputes]
    charts: list[tuple[str, str]]
    findings: Findings


def write_trial_page(page: TrialPage, out: Path) -> None:
    """Write the HTML file.

    Raises:
        UserError: a file of a comparison is missing or damaged, or is not of the same test rows as the others.
    """
    every = [read_comparison(given) for given in page.comparisons]
    sections = [_section(compared, fewest_labels(compared, every), page.resamples) for compared in every]
    verdicts = Counter(one.verdict for section in sections for one in section.lines[section.findings.compared.main])
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    text = environment.get_template(TEMPLATE).render(
        page=page, sections=sections, verdicts=verdicts, advice=rules([section.findings for section in sections]),
        views=VIEWS, metrics=SHOWN, shown_floor=shown_floor, minutes=shown_minutes,
    )  # fmt: skip
    replace_text(out, text)


def _section(compared: Compared, fewer: Compared | None, resamples: int) -> Section:
    given, metrics = compared.given, METRICS[compared.given.task]
    lines = {
        model: [margin(compared, model, view, metric, resamples) for view in given.views for metric in metrics]
        for model in compared.models
    }
    runs: dict[str, Path] = {}
    for scored in given.models:
        runs.setdefault(scored.model, scored.run)
    curves = {model: read_run(run) for model, run in runs.items()}
    main = {(one.view, one.metric): one for one in lines[compared.main]}
    values = {metric: floor_values(compared, metric) for metric in metrics}
    of_views = {view: main[view, metrics[-1]].floor for view in given.views}
    ends = [abs(end) for every in lines.values() for one in every for end in (one.low, one.high) if end is not None]
    first, *others = given.views
    return Section(
        given=given,
        facts=list(_facts(compared)),
        lines=lines,
        floors=[(*_named(name), [values[metric][name] for metric in metrics]) for name in compared.floors],
        scale=max(ends, default=1.0) or 1.0,
        clusters=list(_clusters(compared)),
        disputes=[find_disputes(compared, first), *(find_disputes(compared, view, pairs=0) for view in others)],
        charts=[
            (f"Loss of {compared.main} by samples seen", draw_loss(curves[compared.main])),
            (
                f"Validation {SHOWN[metrics[-1]]} by samples seen",
                draw_metric(curves, metrics[-1], SHOWN[metrics[-1]], of_views),
            ),
        ],
        findings=Findings(compared, main, curves[compared.main], by_class(compared, first), resamples, fewer),
    )


def _named(floor: str) -> tuple[str, str]:
    shown, view = shown_floor(floor)
    return shown, VIEWS.get(view, "nothing of the item")


def _facts(compared: Compared) -> Iterator[tuple[str, str]]:
    table = compared.table
    for split in ("train", "validation", "test"):
        yield f"{split} rows", f"{len(table.rows(split)):,}"
    if compared.is_binary:
        yield "attributes", f"{len(set(table.column('attribute'))):,}"
    else:
        yield "classes", f"{len(compared.names):,}"
    items = np.unique(table.column("item"))
    yield "items", f"{len(items):,}"
    for what, has in zip(("title", "picture"), compared.catalog.shown(), strict=True):
        yield f"items without a {what}", f"{np.sum(~has[items]):,}"


def _clusters(compared: Compared) -> Iterator[Clusters]:
    """Of each view that the clustering has measured and a floor reads."""
    if compared.given.clustering is None:
        return
    measured: dict[str, Any] = read_own_json(compared.given.clustering, AGAIN)["views"]
    floors: dict[str, Any] = read_own_json(compared.given.floors, AGAIN)["floors"]
    for view in compared.given.views:
        of_floors = {
            name: floors[name]["clustering"] for name in compared.floors_of(view) if "clustering" in floors[name]
        }
        if view in measured and of_floors:
            best = max(of_floors, key=lambda name: of_floors[name]["nmi"])
            ours = measured[view]["all"]
            values = [(shown, ours[name], of_floors[best][name]) for name, shown in CLUSTERING.items()]
            yield Clusters(view, shown_floor(best)[0], values)
