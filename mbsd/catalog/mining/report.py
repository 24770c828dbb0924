"""The report of mining: `report.json`, and `report.html`, a page with the same content that needs no server."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mbsd.catalog.layout import SPLITS
from mbsd.catalog.mining.gazetteer import cuts_word
from mbsd.catalog.reader import Catalog
from mbsd.catalog.thumbnail import thumbnail_of
from mbsd.io.files import replace_text

SOURCES = ("purchase", "title", "same-category", "any-category", "rewrite")
EXAMPLES = 10  # of each source
THUMBNAIL = 96  # pixels
BATCH_ROWS = 65_536
COLUMNS = ("text", "item", "label", "source", "evidence", "split", "replaced")


@dataclass
class MiningReport:
    """Counts of one run. `*_asked` negatives were wanted, `*_short` of them do not exist.

    Attributes:
        rewrites_replaced: rewrites that were wanted, for which queries of the same category stand (see `sql_matched`).
        log_rows: all rows, including those that could not be read.
        rows_by_kind: the log's `kind` -> rows, for the most frequent of all `kinds`; any but `purchase` is behaviour.
        kinds: number of distinct kinds.
        rejected: reason -> rows that were left out, each under its first reason. With those that were used, which are
            no field of the report, they are all rows.
        rejected_first: reason -> file and line (of Parquet: row) of the first of them.
        notes: what was not read, or is read from the folders' names.
        bad_times: rows without a time that can be read, where times are read.
        distinct_queries: distinct queries as they are spelled in the log.
        positives_found: pairs with enough buyers, before `max_pairs_per_item` cut them.
        positives: rows of the table that are purchases.
        items: items with a positive.
        rounds: rounds in which negatives were drawn.
        split_rows: split -> rows of the table.
        length_and_frequency: source of negatives -> what a query's length and frequency alone tell (see `shortcuts`).
        groups: what was in one split with what, in words; "" of a split by time, or by each item alone.
        seconds: wall time.
        engine: name and version.
        settings: the run's settings by name.
    """

    log_rows: int = 0
    rows_by_kind: dict[str, int] = field(default_factory=dict)
    kinds: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    rejected_first: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    bad_times: int = 0
    distinct_queries: int = 0
    positives_found: int = 0
    positives: int = 0
    items: int = 0
    same_category: int = 0
    same_category_asked: int = 0
    same_category_short: int = 0
    rewrites: int = 0
    rewrites_asked: int = 0
    rewrites_replaced: int = 0
    rewrites_short: int = 0
    rounds: int = 0
    split_rows: dict[str, int] = field(default_factory=dict)
    length_and_frequency: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: str = ""
    seconds: float = 0.0
    engine: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        """Return one line: what the table holds and what of the log was left out."""
        others = f" and {self.rewrites_replaced} queries of the category for others" if self.rewrites_replaced else ""
        return (
            f"{self.positives} purchases, {self.same_category} of {self.same_category_asked} queries of the same "
            f"category, {self.rewrites} of {self.rewrites_asked} rewrites{others} for {self.items} items, from "
            f"{self.log_rows} rows in {self.seconds:.1f} s ({self.engine}); rows left out: {self.describe_left_out()}"
        )

    def describe_left_out(self) -> str:
        """Return the reasons for which rows were left out, and the first row of each."""
        first = {reason: f" (the first: {place})" for reason, place in self.rejected_first.items()}
        return ", ".join(f"{n} {reason}{first.get(reason, '')}" for reason, n in self.rejected.items()) or "none"

    def describe_shortcuts(self) -> str:
        """Return one line: what length and frequency alone tell of each source of negatives; "" where none is known."""
        told = [f"{name} {of['roc_auc']:.3f}" for name, of in self.length_and_frequency.items() if of["roc_auc"]]
        return f"ROC-AUC of length and frequency alone (0.5: they tell nothing): {', '.join(told)}" if told else ""


def write_report(report: MiningReport, pairs: Path, folder: Path, catalog: Catalog | None = None) -> Path:
    """Write `report.json` and `report.html` in `folder`; return the page's path.

    Both hold the report's own fields and what `describe_pairs` reads from the table.

    Args:
        report: counts of the run that made the table.
        pairs: the table's Parquet file; its column `replaced` ("type:old>new", or "type:old", or empty) may be absent.
        folder: made if it is missing.
        catalog: the table's catalogue; with it the examples show the items' titles and pictures.
    """
    # Imported here: mining itself draws nothing, and their half second and 40 MB are spared where no page is written.
    import jinja2

    from mbsd.catalog.mining.charts import chart_lengths, chart_pairs_per_item, chart_splits

    summary = {**asdict(report), "fill": _fill(report), **describe_pairs(pairs, catalog)}
    summary = json.loads(json.dumps(summary, ensure_ascii=False, default=str))
    replace_text(folder / "report.json", json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    shown = {row["item"] for rows in summary["examples"].values() for row in rows}
    lengths = summary["lengths"]
    charts = {
        "splits": chart_splits(summary["splits"]),
        "characters": chart_lengths(lengths["query_characters"], "characters of a query"),
        "words": chart_lengths(lengths["query_words"], "words of a query"),
        "pairs": chart_pairs_per_item(lengths["pairs_per_item"]),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        {**summary, "pairs_total": summary["pairs"], "pairs": pairs.name},
        charts=charts,
        thumbnails=_thumbnails(catalog, shown) if catalog else {},
    )
    path = folder / "report.html"
    replace_text(path, page)
    return path


def describe_pairs(pairs: Path, catalog: Catalog | None = None) -> dict[str, Any]:
    """Describe a pair table, in two passes and with memory for its distinct items alone.

    Returns:
        pairs: number of rows.
        splits: split -> source -> rows.
        labels: label -> rows.
        lengths: query_characters and query_words by label ("0", "1"), and pairs_per_item: value -> how often.
        examples: source -> up to `EXAMPLES` rows, at even distances in the table, with the item's id and title where
            the catalogue is given. The replaced term has its type, old and new text, and the query around it.
    """
    splits: defaultdict[str, Counter[str]] = defaultdict(Counter)
    labels: Counter[int] = Counter()
    lengths: dict[str, defaultdict[int, Counter[int]]] = {
        "query_characters": defaultdict(Counter),
        "query_words": defaultdict(Counter),
    }
    of_item = np.zeros(0, dtype=np.int64)
    for batch in _batches(pairs, ("text", "item", "label", "source", "split")):
        splits_and_sources = zip(batch["split"].to_pylist(), batch["source"].to_pylist(), strict=True)
        for (split, source), rows in Counter(splits_and_sources).items():
            splits[split][source] += rows
        label = batch["label"].to_numpy()
        measured = {
            "query_characters": pc.utf8_length(batch["text"]).to_numpy(),
            "query_words": pc.count_substring(batch["text"], " ").to_numpy() + 1,
        }
        for value in np.unique(label):
            labels[int(value)] += int((label == value).sum())
            for name, numbers in measured.items():
                lengths[name][int(value)] += _counted(numbers[label == value])
        items = batch["item"].to_numpy()
        of_item.resize(max(len(of_item), int(items.max()) + 1), refcheck=False)
        np.add.at(of_item, items, 1)
    rows_of_source = Counter[str]()
    for by_source in splits.values():
        rows_of_source.update(by_source)
    return {
        "pairs": sum(labels.values()),
        "splits": {split: dict(splits[split]) for split in sorted(splits, key=_position_in(SPLITS))},
        "labels": {str(label): labels[label] for label in sorted(labels)},
        "lengths": {
            **{
                name: {str(label): _sorted(of_label[label]) for label in of_label} for name, of_label in lengths.items()
            },
            "pairs_per_item": _sorted(_counted(of_item[of_item > 0])),
        },
        "examples": _examples(pairs, rows_of_source, catalog),
    }


def _fill(report: MiningReport) -> dict[str, dict[str, Any]]:
    found = {
        "same-category": (report.same_category_asked, report.same_category, 0, report.same_category_short),
        "rewrite": (report.rewrites_asked, report.rewrites, report.rewrites_replaced, report.rewrites_short),
    }
    return {
        source: {
            "asked": asked,
            "got": got,
            "replaced": replaced,
            "short": short,
            "rate": (got + replaced) / asked if asked else None,
        }
        for source, (asked, got, replaced, short) in found.items()
    }


def _examples(pairs: Path, rows_of_source: Mapping[str, int], catalog: Catalog | None) -> dict[str, Any]:
    wanted = {
        source: np.unique(np.linspace(0, rows - 1, min(EXAMPLES, rows)).astype(np.int64))
        for source, rows in rows_of_source.items()
    }
    examples: dict[str, Any] = {source: [] for source in sorted(wanted, key=_position_in(SOURCES))}
    seen = Counter[str]()
    for batch in _batches(pairs, COLUMNS):
        sources = np.array(batch["source"].to_pylist(), dtype=object)
        for source, places in wanted.items():
            rows = np.flatnonzero(sources == source)
            inside = places[(places >= seen[source]) & (places < seen[source] + len(rows))] - seen[source]
            seen[source] += len(rows)
            examples[source] += [_example(row, catalog) for row in batch.take(rows[inside]).to_pylist()]
    return examples


def _example(row: dict[str, Any], catalog: Catalog | None) -> dict[str, Any]:
    row["replaced"] = _replaced_term(row["text"], row.get("replaced") or "")
    if catalog is not None:
        record = catalog.record(row["item"])
        row |= {"item_id": record.item_id, "title": record.title, "category": record.category}
        row |= {"attributes": record.attributes}
    return row


def _replaced_term(text: str, replaced: str) -> dict[str, str] | None:
    """Return {type, old, new, head, tail} of "type:old>new", where text = head + new + tail; None for no replacement.

    A ">" may belong to the old text or to the new: the first one whose right side occurs in the query, as whole words,
    separates them. If there is none, all is the old text, and the new is "".
    """
    name, _, change = replaced.partition(":")
    if not change:
        return None
    for separator in (place for place, character in enumerate(change) if character == ">"):
        old, new = change[:separator], change[separator + 1 :]
        start = text.find(new) if new else -1
        while start >= 0:
            end = start + len(new)
            if not cuts_word(text, start) and not cuts_word(text, end):
                return {"type": name, "old": old, "new": new, "head": text[:start], "tail": text[end:]}
            start = text.find(new, start + 1)
    return {"type": name, "old": change, "new": "", "head": text, "tail": ""}


def _thumbnails(catalog: Catalog, items: set[int]) -> dict[int, str]:
    """Return item -> a small JPEG as a data URI, for the items that have a picture."""
    pictures = {item: thumbnail_of(catalog, item, THUMBNAIL) for item in sorted(items)}
    return {item: picture for item, picture in pictures.items() if picture}


def _batches(pairs: Path, columns: tuple[str, ...]) -> Iterator[Any]:
    with pq.ParquetFile(pairs) as file:
        names = file.schema_arrow.names
        yield from file.iter_batches(BATCH_ROWS, columns=[name for name in columns if name in names])


def _counted(values: Any) -> Counter[int]:
    distinct, counts = np.unique(values, return_counts=True)
    return Counter(dict(zip(distinct.tolist(), counts.tolist(), strict=True)))


def _sorted(counts: Counter[int]) -> dict[str, int]:
    return {str(value): counts[value] for value in sorted(counts)}


def _position_in(order: tuple[str, ...]) -> Any:
    """Return a sort key for names: in this order, and any others behind them by name."""
    return lambda name: (order.index(name) if name in order else len(order), name)
