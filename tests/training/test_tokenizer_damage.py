"""The vocabulary that a run built: taken over at the next start if it is as it was written, else built again."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from mbsd.catalog.reader import Catalog
from mbsd.config.parse import parse
from mbsd.config.run import PretrainConfig
from mbsd.data.text import words_digest
from mbsd.training.start import start_tokenizer
from tests.conftest import Shop
from tests.damage import damage
from tests.ranks import call
from tests.settings import stage_1_words


def start(rank: int, world_size: int, words: list[str], run: Path) -> tuple[list[Any], str]:
    """The vocabulary, and when its file was written: of a first start, of a second, and of one after damage.

    And what was printed.
    """
    screen = io.StringIO()
    sys.stderr = screen
    config, _ = parse(PretrainConfig, words)
    file, found = run / "tokenizer/tokenizer.json", []
    for times in range(3):
        if times == 2 and rank == 0:
            damage(file)
        tokenizer = start_tokenizer(config, Catalog(config.data.catalog), run)
        found.append((words_digest(tokenizer), file.read_bytes(), file.stat().st_mtime_ns))
    return found, screen.getvalue()


@pytest.mark.distributed
def test_a_damaged_vocabulary_is_built_again(shop: Shop, tmp_path: Path) -> None:
    words = [str(word) for word in stage_1_words(tmp_path / "run", shop.catalog, 2)]
    (((first, second, third), printed),) = call(start, 1, words, tmp_path / "run")
    assert first == second, "whole: taken over"
    assert third[:2] == first[:2] and third[2] != first[2], "damaged: the same words, written again"
    (line,) = [line for line in printed.splitlines() if "WARNING" in line]
    assert f"{tmp_path / 'run/tokenizer/tokenizer.json'} is not as it was written (its checksum" in line
