"""The taggers by name: a gazetteer, or a model of the user's own."""

from __future__ import annotations

from pathlib import Path

from mbsd.catalog.mining.gazetteer import Tagger, gazetteer
from mbsd.catalog.mining.model_tagger import ModelTagger
from mbsd.catalog.reader import Catalog
from mbsd.errors import UserError

MODEL_PREFIX = "transformers:"


def make_tagger(name: str, catalog: Catalog, lexicon: Path | None = None) -> Tagger:
    """The tagger `gazetteer`, or `transformers:PATH`, a token-classification model in a folder.

    Raises:
        UserError: another name, or as `gazetteer` and `tagging_model.ModelTagger` raise it.
    """
    if name == "gazetteer":
        return gazetteer(catalog, lexicon)
    if name.startswith(MODEL_PREFIX):
        return ModelTagger(Path(name.removeprefix(MODEL_PREFIX)), gazetteer(catalog, lexicon))
    raise UserError(f"tagger {name!r}; expected gazetteer, or {MODEL_PREFIX}PATH with the folder of a model")
