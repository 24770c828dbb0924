"""Queries and their nearest items as one HTML page: pictures are in it, nothing else is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from mbsd.catalog.build.normalise import normalise_image
from mbsd.catalog.reader import Catalog
from mbsd.catalog.thumbnail import data_uri, thumbnail_of
from mbsd.errors import UserError
from mbsd.inference import Encoder
from mbsd.io.files import replace_text
from mbsd.io.stored_vectors import read_manifest
from mbsd.metrics.search import Hit, StoredIndex

TEMPLATE = "page.html.j2"
THUMBNAIL = 160  # pixels


@dataclass(frozen=True)
class Asked:
    """What is looked for: texts, ids of items, picture files; in which view's vectors, and how many of each."""

    texts: tuple[str, ...]
    items: tuple[str, ...]
    pictures: tuple[Path, ...]
    view: str | None
    number: int

    def check(self) -> None:
        """Raise UserError where nothing is asked, or an empty text."""
        if not (self.texts or self.items or self.pictures):
            raise UserError("nothing is asked: give --query TEXT, --item ID or --picture FILE; each may be repeated")
        if not all(text.strip() for text in self.texts):
            raise UserError("--query: an empty text; give words, or leave it out")


@dataclass(frozen=True)
class Card:
    """An item as the page shows it; its picture as a data URI, "" without one; no score: it is the query itself."""

    item_id: str
    title: str
    category: str
    picture: str
    score: float | None = None


@dataclass(frozen=True)
class Answer:
    """A query (a text, a picture file or an item) and its nearest items, best first."""

    kind: str
    query: Card
    found: list[Card]

    def text(self) -> str:
        """For the screen: the query, and a line for each item."""
        lines = [f"{card.score:.4f}  {card.item_id}  {card.title}" for card in self.found]
        return "\n  ".join([f"{self.kind}: {self.query.title or self.query.item_id}", *lines])


def write_page(
    vectors: Path, asked: Asked, out: Path, *, model: Path | None = None, catalog_path: Path | None = None
) -> list[Answer]:
    """Write the page and return what it shows.

    Args:
        vectors: a folder that `launchers/embed.py` wrote.
        model: that encodes texts and pictures; None: the one that wrote the vectors.
        catalog_path: None: where the vectors' catalogue lay.

    Raises:
        UserError: nothing is asked, an item or a file is not there, or vectors, model and catalogue do not belong
            together.
    """
    asked.check()
    encoder, index = _opened(vectors, asked, model)
    catalog = _catalog(index, catalog_path)
    answers = [_of_item(index, catalog, item_id, asked.number) for item_id in asked.items]
    if encoder is not None:
        for text in asked.texts:
            (hits,) = encoder.search(index, titles=[text], k=asked.number)
            answers.append(Answer("text", Card("", text, "", ""), _cards(catalog, hits)))
        for path in asked.pictures:
            (hits,) = encoder.search(index, images=[path], k=asked.number)
            shown = data_uri(normalise_image(path.read_bytes(), THUMBNAIL).jpeg, THUMBNAIL)
            answers.append(Answer("picture", Card("", str(path), "", shown), _cards(catalog, hits)))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    facts = {
        "vectors": vectors, "view": index.stored.view, "count": len(index.nearest), "exact": index.nearest.exact,
        "catalog": catalog.path, "model": index.stored.manifest["model_path"],
    }  # fmt: skip
    replace_text(out, environment.get_template(TEMPLATE).render(answers=answers, **facts))
    return answers


def _opened(vectors: Path, asked: Asked, model: Path | None) -> tuple[Encoder | None, StoredIndex]:
    """The model, where one is needed, and the vectors, which are then its own."""
    if not (asked.texts or asked.pictures):
        return None, StoredIndex(vectors, asked.view)
    if model is None:
        written_by = read_manifest(vectors)["model_path"]
        if not Path(written_by).exists():
            raise UserError(
                f"{vectors}: the model that wrote these vectors, {written_by}, is not there; name it with --model, or "
                "ask with --item, which needs none"
            )
        model = Path(written_by)
    encoder = Encoder.load(model)
    view: Any = asked.view
    return encoder, encoder.open_index(vectors, view)


def _catalog(index: StoredIndex, path: Path | None) -> Catalog:
    """The catalogue that the vectors are of."""
    manifest = index.stored.manifest
    named = path or manifest.get("catalog_path")
    if named is None:
        raise UserError(f"{index.folder}: does not say where its catalogue lies; name it with --catalog")
    catalog = Catalog(named)
    if catalog.fingerprint != manifest["catalogue"]:
        raise UserError(
            f"{named}: not the catalogue that the vectors in {index.folder} are of (it was built again, or is another "
            "one); name that one with --catalog, or write the vectors again"
        )
    return catalog


def _of_item(index: StoredIndex, catalog: Catalog, item_id: str, number: int) -> Answer:
    item = catalog.item_number(item_id)
    if item is None:
        raise UserError(f"--item {item_id}: {catalog.path} has no such item; name an item_id of it")
    stored = index.stored
    row = int(np.searchsorted(stored.items, item))
    if row == len(stored.items) or stored.items[row] != item:
        raise UserError(
            f"--item {item_id}: not among the vectors, which are of the split {stored.manifest['split']}; write those "
            "of all items, or name another item"
        )
    if not stored.present_n[row]:
        raise UserError(f"--item {item_id}: has no vector in the view {stored.view}, for it lacks what that shows")
    (hits,) = index.search(stored.vectors_nE[row : row + 1], number + 1)
    others = [hit for hit in hits if hit.item != item][:number]
    return Answer("item", _card(catalog, item, None), _cards(catalog, others))


def _cards(catalog: Catalog, hits: Sequence[Hit]) -> list[Card]:
    return [_card(catalog, hit.item, hit.score) for hit in hits]


def _card(catalog: Catalog, item: int, score: float | None) -> Card:
    record = catalog.record(item)
    return Card(record.item_id, record.title, record.category, thumbnail_of(catalog, item, THUMBNAIL), score)
