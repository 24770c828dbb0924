"""The tokenizer and the weights that a run begins with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mbsd.catalog.queries import normalise_query
from mbsd.catalog.several import Items
from mbsd.checkpoint.resume import weights_folder
from mbsd.config.run import BaseConfig
from mbsd.data.text import build_tokenizer, load_tokenizer
from mbsd.errors import UserError
from mbsd.io.console import say
from mbsd.io.files import difference, facts_of, read_own_json, replace_text, replacing
from mbsd.model.foreign import words_of
from mbsd.parallel.world import on_rank_zero, same_on_every_rank

TOKENIZER_SUMS = "tokenizer_files.json"  # beside the folder tokenizer: size and checksum of each of its files


def start_weights(config: BaseConfig) -> Path | None:
    """The transformers folder that run.init_from means; None where it is not set.

    Raises:
        UserError: there is none.
    """
    return weights_folder(config.run.init_from) if config.run.init_from is not None else None


def start_tokenizer(config: BaseConfig, catalog: Items, run_folder: Path) -> PreTrainedTokenizerBase:
    """data.tokenizer, else that of run.init_from or model.backbone, else one built from the catalogue (collective).

    A ViT or a CLIP as model.backbone brings no words.

    Raises:
        UserError: data.tokenizer holds other words than the weights were trained with.
    """
    given, start = config.data.tokenizer, config.run.init_from
    with same_on_every_rank():
        weights = start_weights(config)
        source = str(weights) if weights is not None else words_of(config.model)
        named = given or source
        tokenizer = load_tokenizer(named) if named is not None else None
        if tokenizer and given and start and tokenizer.get_vocab() != load_tokenizer(str(source)).get_vocab():
            raise UserError(
                f"data.tokenizer={given}: its vocabulary is not the one that run.init_from={start} was trained with; "
                "leave data.tokenizer out"
            )
    if tokenizer is not None:
        return tokenizer
    folder = run_folder / "tokenizer"

    def build() -> None:
        recorded = run_folder / TOKENIZER_SUMS
        if folder.exists():
            damage = _damage(folder, recorded)
            if not damage:
                return
            say(f"WARNING: {damage}: the vocabulary is built again")
            shutil.rmtree(folder)
        with replacing(folder) as beside:  # killed while it is written, it is built again
            build_tokenizer(_texts(catalog), config.model.vocab_size, beside)
            facts = {path.name: facts_of(path) for path in sorted(beside.iterdir())}
            replace_text(recorded, json.dumps(facts, indent=1) + "\n")

    on_rank_zero(build)
    return load_tokenizer(str(folder))


def _damage(folder: Path, recorded: Path) -> str:
    """Which file of a built tokenizer is not as it was written, in words; "" where none is, or none was recorded."""
    if not recorded.exists():
        return ""
    for name, facts in read_own_json(recorded, "remove it and the folder tokenizer beside it").items():
        if wrong := difference(folder / name, facts):
            return f"{folder / name} is not as it was written ({wrong})"
    return ""


def _texts(catalog: Items) -> Iterator[str]:
    """What a vocabulary has to cover: titles as they are; categories and attribute values as queries hold them."""
    yield from catalog.table()["title"].to_pylist()
    yield from map(normalise_query, catalog.table()["category"].to_pylist())
    for name, values in sorted(catalog.attribute_values().items()):
        for value in values:
            yield normalise_query(f"{name} {value}")
