"""`launchers/paper.py`: the studies one after the other, each of which is resumed, and one page of their results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mbsd.config.parse import parse_scoring
from mbsd.io.files import read_own_json
from mbsd.tools.studies.ablation import run_ablation
from mbsd.tools.studies.chains import chain_of
from mbsd.tools.studies.commands import Command, LaunchConfig, in_clone
from mbsd.tools.studies.compare.paper_numbers import TABLE_6
from mbsd.tools.studies.compare.run import run_compare
from mbsd.tools.studies.compare.settings import CompareConfig, ComparedTables
from mbsd.tools.studies.missing import run_missing
from mbsd.tools.studies.paper.settings import SCALES, PaperConfig
from mbsd.tools.studies.runner import start_runner
from mbsd.tools.studies.settings import AblationConfig, MissingStudyConfig, TablesConfig
from mbsd.tools.studies.settings_files import same_settings
from mbsd.tools.studies.shop import shop_below, shop_commands
from mbsd.tools.studies.study_page.page import Section, add_row, new_table, write_study_page

TOLD = "What launchers/paper.py made of {}."
ON_TITLES = "pairs of stage 2 are of words of its titles, for it has no log"


def run_paper(config: PaperConfig) -> None:
    """Run what is not done yet, and write `paper.html` to `config.out`."""
    out, scale = Path(config.out), SCALES[config.scale]
    runner = start_runner(out, LaunchConfig())
    given = {"scale": config.scale, "catalog": config.catalog, "shop": asdict(config.shop)}
    same_settings(out, "paper", {**given, "min_items": config.min_items}, "out")
    tables, commands = table_commands(config)
    runner.run(commands)
    ours = {name: path for name, path in asdict(tables).items() if name in ("catalog", "pairs", "attributes")}
    in_place = ("--shop=null", "--tables", json.dumps(asdict(TablesConfig(**ours))))
    sections = run_compare(
        parse_scoring(
            CompareConfig,
            [*options_of(config.compare, scale.compare), "--out", str(out / "compare"), "--shop=null", "--tables",
             json.dumps(asdict(tables))],
        )
    )  # fmt: skip
    of_rows, of_missing = options_of(config.ablation, *scale.ablation), options_of(config.missing, *scale.missing)
    ablation = parse_scoring(AblationConfig, [*of_rows, "--out", str(out / "table6"), *in_place])
    missing = parse_scoring(MissingStudyConfig, [*of_missing, "--out", str(out / "table6"), *in_place])
    if missing.finetune != ablation.finetune:  # its fine-tunings are others, of the same names
        missing = replace(missing, out=str(out / "fig7"))
    sections += [_with_paper(run_ablation(ablation)), run_missing(missing)]
    latency = latency_command(config)
    runner.run([latency])
    sections += [_fig8(latency.done)]
    told = f"the catalogue {config.catalog}; {ON_TITLES}" if config.catalog else "a synthetic shop"
    write_study_page(out / "paper.html", "The paper, reproduced", TOLD.format(told), sections)
    runner.console.print(f"{out}/paper.html", highlight=False)


def table_commands(config: PaperConfig) -> tuple[ComparedTables, list[Command]]:
    """The catalogue and its tables, and the commands that make what is not there."""
    out = Path(config.out)
    categories = out / "categories.parquet"
    if config.catalog is None:
        shop = shop_below(out)
        made = ComparedTables(str(shop.catalog), str(shop.attributes), None, str(categories), str(shop.pairs))
        commands = shop_commands(out, config.shop)
    else:
        pairs, attributes = out / "pairs.parquet", out / "attributes.parquet"
        made = ComparedTables(config.catalog, str(attributes), config.alignment, str(categories), str(pairs))
        derive = ("--catalog", config.catalog, "--out")
        commands = [
            Command("pairs", pairs, ("pairs", "derive", *derive, pairs)),
            Command("tags", attributes, ("tables", "derive", "attributes", *derive, attributes, "--balance", "value")),
        ]
    words = ("tables", "derive", "categories", "--catalog", made.catalog, "--out", categories)
    commands.append(Command("categories", categories, (*words, "--min-items", config.min_items)))
    return made, commands


def options_of(given: str | None, usual: str, *options: str) -> Iterator[str]:
    """The words that name a study's YAML: the one that is given, or the usual one with its options."""
    yield from ("--config", given) if given is not None else ("--config", in_clone(f"launchers/configs/{usual}"))
    yield from options if given is None else ()


def _with_paper(table6: Section) -> Section:
    """Table 6 with the paper's own numbers behind it."""
    table = new_table("ID", "model", "AUC")
    for row, (mean, spread) in TABLE_6.items():
        add_row(table, str(row), chain_of(row, 1.0).name, f"{mean:.2f} ± {spread:.2f}", of_paper=True)
    text = "The paper's Table 6: ROC-AUC on IAVP-G, over 16 fine-tunings each."
    return Section(table6.title, (*table6.tables, (text, table)), table6.picture)


def latency_command(config: PaperConfig) -> Command:
    """Fig. 8 here: `latency.json` and `latency.png`."""
    out, scale = Path(config.out), SCALES[config.scale]
    batches = (word for size in config.latency_batches or scale.batches for word in ("--batch", size))
    models = (word for name in config.latency_models for word in ("--models", name))
    words = ("--steps", scale.steps, "--seconds", scale.seconds, "--picture", out / "latency.png")
    done = out / "latency.json"
    return Command("latency", done, ("bench", "latency", *batches, *models, *words, "--json", done))


def _fig8(file: Path) -> Section:
    """What `mbsd bench latency` measured, as a table; models of the sizes that were published."""
    found: dict[str, Any] = read_own_json(file, "remove it: it is measured again")
    batches = sorted({cell["batch"] for cell in found["cells"]})
    tables = []
    for part, name in (("image", "the image side"), ("whole", "the whole model")):
        cells = {(cell["model"], cell["batch"]): cell["mean_ms"] for cell in found["cells"] if cell["part"] == part}
        table = new_table("model", "M parameters", *(f"batch {batch}" for batch in batches))
        for model, facts in found["models"].items():
            if any((model, batch) in cells for batch in batches):
                shown = [f"{cells[model, batch]:,.1f}" for batch in batches]
                add_row(table, model, f"{facts['parameters'] / 1e6:.0f}", *shown)
        if table.row_count:
            text = f"Milliseconds of a forward, the mean, of {name}, in published sizes, on {found['device']}."
            tables.append((text, table))
    return Section("Fig. 8: latency", tuple(tables), file.with_suffix(".png"))
