"""Finds the terms of a query by a token-classification model, and makes either tagger by its name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mbsd.catalog.mining.gazetteer import Gazetteer, Span, Tagger, cuts_word, gazetteer
from mbsd.catalog.reader import Catalog
from mbsd.errors import UserError
from mbsd.io.home import expand_home

BATCH = 64
MODEL_PREFIX = "transformers:"


def make_tagger(name: str, catalog: Catalog, lexicon: Path | None = None) -> Tagger:
    """Return the tagger `gazetteer`, or `transformers:PATH`, a token-classification model in a folder.

    Raises:
        UserError: another name, or as `gazetteer` and `ModelTagger` raise it.
    """
    if name == "gazetteer":
        return gazetteer(catalog, lexicon)
    if name.startswith(MODEL_PREFIX):
        return ModelTagger(Path(expand_home(name.removeprefix(MODEL_PREFIX))), gazetteer(catalog, lexicon))
    raise UserError(f"tagger {name!r}; expected gazetteer, or {MODEL_PREFIX}PATH with the folder of a model")


class ModelTagger:
    """A transformers model whose labels are attributes of the catalogue (`colour`, or `B-colour` and `I-colour`).

    The model finds where a term is and of which type; the gazetteer has its canonical form and the type's other values.
    The model is read at its first use, so that pickling the tagger pickles no more than its path.

    Args:
        path: folder with model and tokenizer, as `save_pretrained` writes them.
        terms: the gazetteer, for the canonical forms and the values.

    Raises:
        UserError: no such folder, another kind of model, or a model without a label that is an attribute.
    """

    def __init__(self, path: Path, terms: Gazetteer) -> None:
        self.path, self.terms = path, terms
        self.values: Mapping[str, tuple[str, ...]] = terms.values
        self._check()

    def __reduce__(self) -> tuple[Any, ...]:
        return (ModelTagger, (self.path, self.terms))

    def tag(self, queries: Sequence[str]) -> list[list[Span]]:
        """As in `Tagger`; a span inside a Latin word or number is dropped, as in the gazetteer."""
        # Which queries share a batch can change the last bit of a score: it must not depend on the order they come in.
        distinct = sorted(set(queries), key=lambda query: (len(query), query))
        found = self._pipeline(distinct, batch_size=BATCH) if distinct else []
        spans = {query: self._spans(query, groups) for query, groups in zip(distinct, found, strict=True)}
        return [list(spans[query]) for query in queries]

    def canonical(self, type: str, value: str) -> str:
        """As in `Tagger`."""
        return self.terms.canonical(type, value)

    def _spans(self, query: str, groups: Sequence[Mapping[str, Any]]) -> list[Span]:
        spans = []
        for group in groups:
            start, end = int(group["start"]), int(group["end"])
            # Some tokenizers count the space before a word as part of the word.
            start, end = start + len(query[start:end]) - len(query[start:end].lstrip()), len(query[:end].rstrip())
            if start < end and not cuts_word(query, start) and not cuts_word(query, end):
                name = str(group["entity_group"])
                spans.append(Span(start, end, name, self.canonical(name, query[start:end])))
        return spans

    @cached_property
    def _pipeline(self) -> Any:
        from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

        tokenizer = AutoTokenizer.from_pretrained(self.path)
        if not tokenizer.is_fast:
            raise UserError(f"tagger {self.path}: its tokenizer does not say where a token stands; save a fast one")
        model = AutoModelForTokenClassification.from_pretrained(self.path)
        # A tokenizer without a limit of its own passes more tokens than the model has positions.
        positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
        return pipeline("token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="simple")

    def _check(self) -> None:
        file = self.path / "config.json"
        try:
            config = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"tagger {self.path}: no readable config.json ({error}); expected the folder of a transformers model"
            ) from None
        kind = ", ".join(config.get("architectures") or ["none"])
        if not kind.endswith("ForTokenClassification"):
            # from_pretrained would add an untrained head to it, with no more than a warning.
            raise UserError(f"tagger {self.path}: holds {kind}; expected a model for token classification")
        labels = {str(label) for label in (config.get("id2label") or {}).values()} - {"O"}
        types = {label[2:] if label[:2] in ("B-", "I-") else label for label in labels}
        if not types & set(self.values):
            raise UserError(
                f"tagger {self.path}: labels {', '.join(sorted(labels)[:10]) or 'none'}; expected attributes of the "
                f"catalogue: {', '.join(self.values)}"
            )
