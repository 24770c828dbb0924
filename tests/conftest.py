"""What several rooms' tests share: a small synthetic shop, built once."""

from __future__ import annotations

import multiprocessing.forkserver
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import ranks


@dataclass(frozen=True)
class Shop:
    """A synthetic catalogue of 240 items with its pair table and attribute table."""

    catalog: Path
    pairs: Path
    tags: Path


# What takes minutes begins first, so that the two processes of `make test` end together; Slurm mostly waits, the demo
# beside it does not.
LONGEST_FIRST = [
    "tests/slurm", "tests/smoke", "tests/tasks", "tests/training", "tests/catalog/test_mining_spark",
    "tests/fake_cuda", "tests/checkpoint", "tests/bench", "tests/studies", "tests/baselines", "tests/optim",
]  # fmt: skip
SHARED_BY_FOLDER = ["tests/tasks", "tests/slurm"]  # one set of trained models, one Slurm


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In pytest-xdist's processes, the order in which files are handed out."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: [item.nodeid.startswith(name) for name in [*LONGEST_FIRST, ""]].index(True))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests that share fixtures stay in one process: those of a file, or of a folder."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            shared = [folder for folder in SHARED_BY_FOLDER if nodeid.startswith(folder)]
            return (shared or [nodeid.partition("::")[0]])[0]

    config.option.loadscopereorder = False  # or files with many tests would come first
    return ByFile(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="write tests/golden/*.json anew from this run")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tensors of a few hundred numbers: a second thread only waits, for seconds where the cores are shared."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def fork_server() -> None:
    """A process has one server to fork from. The first who asks says what it imports: that is us, and not a build."""
    ranks.fork_server()
    multiprocessing.forkserver.ensure_running()


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    import json

    from mbsd.catalog.build.build import BuildOptions, build_catalog
    from mbsd.catalog.mining.mine import MiningSettings, mine_pairs
    from mbsd.catalog.reader import Catalog
    from mbsd.catalog.sources import read_items
    from mbsd.catalog.synthetic.shop import ShopOptions, synthesise
    from mbsd.catalog.tables import derive_table

    folder = tmp_path_factory.mktemp("shop")
    made = Shop(folder / "catalog", folder / "pairs.parquet", folder / "tags.parquet")
    synthesise(folder / "raw", ShopOptions(num_items=240, seed=5, image_side=64), workers=1)
    where = json.loads((folder / "raw" / "attribute_where.json").read_text())
    items = read_items(folder / "raw" / "items.jsonl")
    options = BuildOptions(workers=1, attribute_where=where, progress=False)
    build_catalog(items, folder / "raw" / "images", made.catalog, options)
    catalog = Catalog(made.catalog)
    # The golden losses are of these rows, from before negatives were matched.
    mine_pairs(folder / "raw" / "log.parquet", catalog, made.pairs, MiningSettings(match=()))
    derive_table("attributes", catalog, made.tags)
    return made
