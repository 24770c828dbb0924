"""A shop whose floors are fitted for real and whose models are made, and the page of a trial over them.

A model's answers are the truth with mistakes drawn in known places, so that what the page has to say of it can be
counted without the page's code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from mbsd.catalog.build.build import BuildOptions, build_catalog
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item
from mbsd.catalog.tables import Table, build_table
from mbsd.io.files import digest_of
from mbsd.metrics.table_scores import TableScores
from mbsd.scoring.answers import answers, write_answers
from mbsd.scoring.floors import write_floors
from mbsd.tasks.task import Labels
from mbsd.tools.studies.trial_report.inputs import Comparison, Scored
from mbsd.tools.studies.trial_report.page import TrialPage, write_trial_page

HOSTILE = "<script>alert('x')</script> \"quoted\" & 红色 连衣裙"
CLASSES = ("<b>Bags & more</b>", "Dresses", "Shoes", "靴子")
VIEWS = ("full", "text", "image")


@dataclass(frozen=True)
class Shop:
    folder: Path
    catalog: Path

    def table(self, kind: str) -> Path:
        return self.folder / f"{kind}.parquet"


def make_shop(folder: Path) -> Shop:
    """240 items, 80 of them in test; one in ten has no picture, titles name the class two times of three."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    items, categories, tags = [], [], []
    for n in range(240):
        k = int(rng.integers(3)) if n % 25 else 3  # 靴子 is rare: four items of it are for training
        word = f"word{k if rng.random() < 0.7 else int(rng.integers(4))}"
        title = f"{HOSTILE} {word}" if n % 2 else f"plain thing {word}"
        if n % 10:
            seen = k if rng.random() < 0.7 else int(rng.integers(4))
            waves = np.sin(np.arange(32 * 32).reshape(32, 32) * (1 + seen) / 16) + rng.normal(0, 0.2, (32, 32))
            grey = (40 + 40 * seen + 20 * waves).clip(0, 255).astype(np.uint8)
            Image.fromarray(grey).convert("RGB").save(folder / f"images/{n}.png")
        items.append(Item(f"i{n}", title, f"{n}.png" if n % 10 else "", category=CLASSES[k]))
        split = ("train", "validation", "test")[n % 3]
        categories.append({"item_id": f"i{n}", "category": CLASSES[k], "split": split})
        for value in ("<i>a</i>", "b"):
            label = int((value == "b") == (k > 1))
            tags.append({"item_id": f"i{n}", "text": f"kind:{value}", "label": label, "split": split})
    found = Shop(folder, folder / "catalog")
    build_catalog(items, folder / "images", found.catalog, BuildOptions(workers=1, progress=False))
    for kind, rows in (("categories", categories), ("attributes", tags)):
        source = folder / f"{kind}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        build_table(kind, source, Catalog(found.catalog), found.table(kind))
        write_floors(
            Catalog(found.catalog), found.table(kind), folder / f"{kind}_floors.json", folder / f"{kind}_floors.parquet"
        )
    return found


def write_run(folder: Path, task: str, values: list[float], losses: tuple[float, float], wait: float = 0.01) -> None:
    """A run of ten validations, of 320 samples each, at two samples a second."""
    folder.mkdir(parents=True, exist_ok=True)
    metric, lines = "roc_auc" if task == "attributes" else "macro_f1", []
    for n, value in enumerate(values, 1):
        speed = {"samples_per_s": 2.0, "data_wait": wait}
        lines.append({"step": 10 * n, "loss": losses[0], **speed})
        of_views = {f"validation/{metric}_{view}": value for view in VIEWS}
        lines.append({"step": 10 * n, "validation/loss": losses[1], **of_views})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "ds_config.json").write_text(json.dumps({"train_batch_size": 32}))
    (folder / "environment.json").write_text(json.dumps({"ranks": [{"host": "h", "device": "cpu"}]}))


RISING = [0.1 + 0.08 * float(np.log2(n)) for n in range(1, 11)]
FLAT = [0.3 + 0.001 * (n % 2) for n in range(10)]


def scored(shop: Shop, task: str, name: str, share_wrong: float, seed: int = 0, **more: Any) -> Scored:
    """A model that is wrong in about `share_wrong` of the test rows, its run and its answers."""
    kind = {"classification": "categories", "attributes": "attributes"}[task]
    table, rng = Table(shop.table(kind), Catalog(shop.catalog)), np.random.default_rng(seed)
    rows = np.asarray(table.rows("test"))
    truth, names = table.column("label")[rows], tuple(table.class_names) or ("no", "yes")
    of_views = []
    for _ in VIEWS:
        wrong = rng.random(len(rows)) < share_wrong
        if task == "attributes":
            sign = np.where((truth == 1) ^ wrong, 1.0, -1.0)
            of_views.append(sign * rng.uniform(0.1, 3, len(rows)))
        else:
            said = np.where(wrong, (truth + rng.integers(1, 4, len(rows))) % len(names), truth)
            of_views.append(rng.uniform(0, 1, (len(rows), len(names))) + 2 * np.eye(len(names))[said])
    out = shop.folder / "models" / task / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    made = TableScores(VIEWS, np.stack(of_views), truth, {})
    write_answers(answers([("", made)], table, rows, Labels(names, np.arange(len(names)))), out.with_suffix(".parquet"))
    out.write_text(json.dumps({"answers_sha256": digest_of(out.with_suffix(".parquet")), "corrupt_images": 0}))
    write_run(out.with_suffix(""), task, RISING, (0.5, 0.6))
    return Scored(more.pop("model", name), out, out.with_suffix(""), **more)


def compared(shop: Shop, task: Literal["classification", "attributes"], *models: Scored) -> Comparison:
    kind = {"classification": "categories", "attributes": "attributes"}[task]
    floors = shop.folder / f"{kind}_floors.json"
    return Comparison(
        f"{kind}, titles <as> they are", task, shop.catalog, shop.table(kind), floors, floors.with_suffix(".parquet"),
        models,
    )  # fmt: skip


@dataclass
class Element:
    tag: str
    given: dict[str, str]
    parent: Element | None = None
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        parts = [child if isinstance(child, str) else child.text for child in self.children]
        return re.sub(r"\s+", " ", "".join(parts)).strip()

    def all(self, tag: str, **given: str) -> Iterator[Element]:
        for child in self.children:
            if isinstance(child, Element):
                named = {name.replace("_", "-").removesuffix("-"): value for name, value in given.items()}
                if child.tag == tag and all(
                    value in child.given.get(name, "").split() if name == "class" else child.given.get(name) == value
                    for name, value in named.items()
                ):
                    yield child
                yield from child.all(tag, **given)

    def cells(self) -> list[str]:
        return [cell.text for cell in self.all("td")]


class Tree(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.root = self.at = Element("", {})
        self.feed(page)
        assert self.at is self.root  # all that was opened is closed

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs}, self.at)
        self.at.children.append(element)
        if tag not in ("meta", "img", "br"):
            self.at = element

    def handle_endtag(self, tag: str) -> None:
        assert self.at.tag == tag and self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.children.append(data)


def page(tmp_path: Path, *comparisons: Comparison, resamples: int = 100) -> Element:
    write_trial_page(TrialPage("items & <more>", comparisons, resamples), tmp_path / "trial.html")
    return Tree((tmp_path / "trial.html").read_text(encoding="utf-8")).root


def holding(root: Element) -> set[str]:
    """Names of the rules that hold."""
    return {next(rule.all("h4")).text for rule in root.all("div", class_="holds")}
