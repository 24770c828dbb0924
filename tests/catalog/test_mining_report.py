from __future__ import annotations

import base64
import json
import random
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mbsd.catalog.mining import report as mining_report
from mbsd.catalog.mining.report import MiningReport, write_report
from mbsd.catalog.sources import Item
from tests.catalog.helpers import image_folder, items_of, small_catalog

EVIL = "<script>alert('x')</script>"


class _Page(HTMLParser):
    """What a browser makes of a page: its elements with their attributes, and its text by element."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.rows: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.rows += [""] if tag == "tr" else []

    def handle_endtag(self, tag: str) -> None:
        self.rows += [""] if tag == "tr" else []

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.elements[-1][0], data.strip()))
            self.rows[-1:] = [f"{row} {' '.join(data.split())}".strip() for row in self.rows[-1:]]


def _rows(rng: random.Random, count: int) -> list[dict[str, Any]]:
    rows = []
    for n in range(count):
        source = rng.choice(["purchase", "same-category", "rewrite", "given"])
        words = [rng.choice(["red", "navy blue", "红色", "hat", "t恤"]) for _ in range(rng.randint(1, 5))]
        rows.append(
            {
                "text": " ".join([f"q{n}", *words]),
                "item": int(20 * rng.random() ** 3),
                "label": int(source == "purchase"),
                "source": source,
                "evidence": rng.randint(2, 9) if source == "purchase" else 0,
                "split": rng.choice(["train", "train", "validation", "test"]),
            }
        )
    return rows


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def _report() -> MiningReport:
    return MiningReport(
        log_rows=20_000, rows_by_kind={"click": 12_000, "purchase": 7_900}, rejected={"unknown item": 100, "null": 1},
        rejected_first={"unknown item": "logs/<day>.csv, line 7"}, notes=["files not read: README"],
        positives=50, same_category=40, rewrites=0, same_category_asked=50, same_category_short=10, items=20,
        distinct_queries=1234, seconds=1.5, kinds=9, bad_times=2000, positives_found=1070,
        rounds=3, engine="duckdb", settings={"log": Path("a/log.parquet"), "seed": 3},
    )  # fmt: skip


@pytest.mark.parametrize("batch_rows", [7, 65_536])
def test_counts_against_plain_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_rows: int) -> None:
    monkeypatch.setattr(mining_report, "BATCH_ROWS", batch_rows)
    rows = _rows(random.Random(1), 200)
    page = write_report(_report(), _write(tmp_path / "pairs.parquet", rows), tmp_path / "new" / "report")
    assert page == tmp_path / "new" / "report" / "report.html"
    found = json.loads((page.parent / "report.json").read_text("utf-8"))
    assert (found["log_rows"], found["engine"], found["settings"]) == (
        20_000,
        "duckdb",
        {"log": "a/log.parquet", "seed": 3},
    )
    assert found["fill"]["same-category"] == {"asked": 50, "got": 40, "replaced": 0, "short": 10, "rate": 0.8}
    assert found["fill"]["rewrite"]["rate"] is None
    assert found["pairs"] == 200 and found["labels"] == _counts(row["label"] for row in rows)
    assert list(found["splits"]) == ["train", "validation", "test"]
    for split, by_source in found["splits"].items():
        assert by_source == _counts(row["source"] for row in rows if row["split"] == split)
    for label in ("0", "1"):
        texts = [row["text"] for row in rows if str(row["label"]) == label]
        assert found["lengths"]["query_characters"][label] == _counts(map(len, texts))
        assert found["lengths"]["query_words"][label] == _counts(len(text.split()) for text in texts)
    per_item = Counter(row["item"] for row in rows)
    assert found["lengths"]["pairs_per_item"] == _counts(per_item.values())
    assert list(found["examples"]) == ["purchase", "same-category", "rewrite", "given"]
    for source, examples in found["examples"].items():
        of_source = [row for row in rows if row["source"] == source]
        places = [of_source.index({name: row[name] for name in rows[0]}) for row in examples]
        assert len(set(places)) == 10 and places == sorted(places)
        assert (places[0], places[-1]) == (0, len(of_source) - 1)
        gaps = {b - a for a, b in zip(places, places[1:], strict=False)}
        assert max(gaps) - min(gaps) <= 1


def _counts(values: Any) -> dict[str, int]:
    return {str(value): count for value, count in Counter(values).items()}


def test_the_page_has_the_reports_content_and_needs_no_other_file(tmp_path: Path) -> None:
    rows = _rows(random.Random(2), 100)
    path = write_report(_report(), _write(tmp_path / "pairs.parquet", rows), tmp_path)
    page = _Page(path)
    assert (
        "unknown item first: logs/<day>.csv, line 7 100 0.5%" in page.rows
        and "null 1 < 0.1%" in page.rows
        and "click 12,000 60.0%" in page.rows
    )
    assert "same-category 50 40 0 10 80.0%" in page.rows and "rewrite 0 0 0 0 not asked for" in page.rows
    assert "log a/log.parquet" in page.rows and ("b", "1,234") in page.texts
    remarks = [" ".join(text.split()) for _, text in page.texts]
    for remark in ("and 7 rarer kinds", "2,000 rows have no readable time.", "files not read: README"):
        assert remark in remarks
    assert any("left 1,020 of 1,070 purchases out" in text for text in remarks) and "found in 3 rounds." in " ".join(
        remarks
    )
    for row in json.loads((tmp_path / "report.json").read_text("utf-8"))["examples"]["purchase"]:
        assert f"{row['text']} number {row['item']} {row['evidence']} {row['split']}" in page.rows
    charts = [attrs["src"] or "" for tag, attrs in page.elements if tag == "img"]
    assert len(charts) == 4
    for chart in charts:
        kind, _, data = chart.partition(";base64,")
        assert kind == "data:image/svg+xml" and base64.b64decode(data).lstrip().startswith(b"<?xml")
    assert not [tag for tag, _ in page.elements if tag in ("script", "link", "iframe")]
    assert "http" not in path.read_text("utf-8")
    before = path.read_bytes()
    assert write_report(_report(), tmp_path / "pairs.parquet", tmp_path).read_bytes() == before


@pytest.mark.parametrize(
    ("text", "replaced", "expected"),
    [
        ("red hat", "colour:navy blue>red", ("colour", "navy blue", "red", "", " hat")),
        ("credit 红t恤 red", "colour:blue>red", ("colour", "blue", "red", "credit 红t恤 ", "")),
        ("nike红色t恤", "颜色:蓝色>红色", ("颜色", "蓝色", "红色", "nike", "t恤")),
        ("hat >40", "size:<38>>40", ("size", "<38", ">40", "hat ", "")),
        ("credit hat", "colour:blue>red", ("colour", "blue>red", "", "credit hat", "")),
        ("red hat", "colour:blue", ("colour", "blue", "", "red hat", "")),
        ("red hat", "", None),
        ("red hat", "what is this", None),
    ],
)
def test_the_replaced_term_is_marked(tmp_path: Path, text: str, replaced: str, expected: Any) -> None:
    row = {"text": text, "item": 3, "label": 0, "source": "rewrite", "evidence": 0, "split": "train"}
    path = write_report(_report(), _write(tmp_path / "pairs.parquet", [{**row, "replaced": replaced}]), tmp_path)
    (example,) = json.loads((tmp_path / "report.json").read_text("utf-8"))["examples"]["rewrite"]
    texts = _Page(path).texts
    if expected is None:
        assert example["replaced"] is None and text in [shown for _, shown in texts]
        return
    assert tuple(example["replaced"][name] for name in ("type", "old", "new", "head", "tail")) == expected
    name, old, new, head, tail = expected
    assert ("del", old) in texts and head + new + tail == text
    assert (("mark", new) in texts) == any(element == "mark" for element, _ in texts) == bool(new)
    assert ("span", name if new else f"{name}, instead of") in texts


def test_one_line() -> None:
    assert _report().describe() == (
        "50 purchases, 40 of 50 queries of the same category, 0 of 0 rewrites for 20 items, from 20000 rows in 1.5 s "
        "(duckdb); rows left out: 100 unknown item (the first: logs/<day>.csv, line 7), 1 null"
    )


def test_text_of_others_is_text_and_nothing_else(tmp_path: Path) -> None:
    catalog = small_catalog(tmp_path / "catalog", [Item("i0", EVIL, "", EVIL, {EVIL: EVIL})])
    rewritten = {"text": f"{EVIL} new", "replaced": f"{EVIL[:20]}:{EVIL}>new"}
    row = {"item": 0, "label": 1, "source": EVIL, "evidence": 2, "split": "train", "replaced": "", "text": EVIL}
    rows = [row, {**row, "source": "rewrite", **rewritten}]
    report = _report()
    report.rows_by_kind = report.rejected = {EVIL: 1}
    report.rejected_first, report.notes = {EVIL: EVIL}, [EVIL]
    report.engine, report.settings = EVIL, {EVIL: EVIL}
    page = _Page(write_report(report, _write(tmp_path / f"{EVIL[:8]}.parquet", rows), tmp_path, catalog))
    assert not [tag for tag, _ in page.elements if tag == "script"]
    assert sum(text.count(EVIL) for _, text in page.texts) >= 10
    assert ("del", EVIL) in page.texts and ("mark", "new") in page.texts
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name.startswith("alert")]


def test_with_the_catalogue_examples_show_title_and_picture(tmp_path: Path) -> None:
    items = [*items_of(3), Item("bare", "no picture")]
    catalog = small_catalog(tmp_path / "catalog", items, image_folder(tmp_path / "images", 3))
    rows = [
        {"text": f"q{n}", "item": n, "label": 1, "source": "purchase", "evidence": 2, "split": "train"}
        for n in range(4)
    ]
    page = _Page(write_report(_report(), _write(tmp_path / "pairs.parquet", rows), tmp_path / "out", catalog))
    assert "q1 title 1 id-1 kind 1 shade: blue shape: square 2 train" in page.rows
    assert "q3 no picture bare 2 train" in page.rows
    pictures = [src for tag, attrs in page.elements if tag == "img" and "jpeg" in (src := attrs["src"] or "")]
    assert len(pictures) == 3
    for number, picture in enumerate(pictures):
        (tmp_path / "small.jpg").write_bytes(base64.b64decode(picture.partition(",")[2]))
        small, whole = Image.open(tmp_path / "small.jpg"), Image.open(tmp_path / f"images/{number:03d}.jpg")
        assert max(small.size) <= 96
        assert all(abs(a - b) < 12 for a, b in zip(small.getpixel((5, 5)), whole.getpixel((5, 5)), strict=True))
