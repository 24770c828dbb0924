"""Twenty kills and the same command each time: the run ends bitwise like one that was left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from mbsd.checkpoint import store
from tests.checkpoint.chaos import chaos
from tests.checkpoint.runs import chaos_arguments, checksums, newest_step
from tests.conftest import Shop
from tests.ranks import launch
from tests.settings import losses

KILLS = 20


@pytest.mark.distributed
@pytest.mark.timeout(2400)  # minutes on two idle cores; many more beside other work
def test_a_run_survives_twenty_kills(shop: Shop, tmp_path: Path) -> None:
    whole, cut = (chaos_arguments(tmp_path / name, shop.catalog, KILLS) for name in ("whole", "cut"))
    launch(2, whole, tmp_path / "log", timeout=900)
    chaos(cut, tmp_path / "cut", tmp_path / "log", KILLS, seed=11, tell=print)
    launch(2, cut, tmp_path / "log", timeout=900)
    expected, found = newest_step(tmp_path / "whole"), newest_step(tmp_path / "cut")
    assert found.name == expected.name == store.name_of(10 * KILLS)
    assert checksums(found) == checksums(expected)
    assert store.broken_files(found, checksums=True) == []
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    # The last two and every 50th; nothing that an interrupted save had left.
    kept = sorted(path.name for path in found.parent.iterdir() if path.is_dir())
    assert kept == sorted(path.name for path in expected.parent.iterdir() if path.is_dir())
