"""`mbsd report`: tables as Markdown and CSV, and one HTML page that needs no server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from mbsd.io.files import replace_text
from mbsd.io.settings_text import read_yaml
from mbsd.tools.report.curves import draw_curves, read_curves
from mbsd.tools.report.examples import Example, find_examples
from mbsd.tools.report.gather import Evaluation, read_evaluations
from mbsd.tools.report.tables import READS, PaperTable, paper_tables, table_of

TEMPLATE = "page.html.j2"
OF_VECTORS = "r1_mean"  # what a run of the contrastive stage is chosen by


@dataclass(frozen=True)
class RunPart:
    """The page's section about one evaluated run.

    Attributes:
        settings: initial weights and seed, in words; empty without a run folder.
        curves: SVG as a data URI; empty without metrics.
        examples: "right" and "wrong" -> rows.
    """

    evaluation: Evaluation
    settings: str
    curves: str
    examples: dict[str, list[Example]]


def write_report(runs: Sequence[Path], out: Path, examples: int) -> list[PaperTable]:
    """Write report.html, report.md and a CSV for each table into a folder, and return the tables.

    Args:
        runs: folders and files as for `read_evaluations`.
        out: the folder, made if missing.
        examples: number of right and of wrong rows shown for each run; 0: none.

    Raises:
        UserError: no evaluation in one of `runs`, or the catalogue of its examples is missing.
    """
    evaluations = read_evaluations(runs)
    tables = paper_tables(evaluations)
    parts = [_part(evaluation, tables, examples) for evaluation in evaluations]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template(TEMPLATE).render(tables=tables, parts=parts, reads=READS)
    replace_text(out / "report.html", page)
    markdown = "\n".join(f"## {table.title}\n\n{table.markdown()}" for table in tables)
    replace_text(out / "report.md", markdown)
    for table in tables:
        replace_text(out / f"{table.task}.csv", table.csv())
    return tables


def _part(evaluation: Evaluation, tables: Sequence[PaperTable], examples: int) -> RunPart:
    curves, settings = "", ""
    if evaluation.run is not None:
        found = read_curves(evaluation.run)
        metrics = next(table.metrics for table in tables if table.task == table_of(evaluation))
        if found:
            of_views = [f"{metric}_{view}" for view in evaluation.views for metric in list(metrics)[-1:]]
            curves = draw_curves(found, [*of_views, OF_VECTORS])
        config = read_yaml(evaluation.run / "config.yaml")
        run = config["run"]
        settings = f"from {run.get('init_from') or 'scratch'}, seed {run['seed']}"
    return RunPart(evaluation, settings, curves, find_examples(evaluation, examples) if examples else {})
