"""A catalogue behind a URL: its index is fetched once to this machine, its shards when they are read."""

from __future__ import annotations

import json
import math
import shutil
import zlib
from pathlib import Path

from mbsd.catalog.layout import CATALOG_FILE, ID_HASH_FILE, ID_ITEM_FILE, INDEX_FILE, SPLITS, shard_file, split_file
from mbsd.catalog.reader import Catalog
from mbsd.catalog.shard_cache import ShardCache, locked
from mbsd.errors import UserError
from mbsd.io.files import replacing
from mbsd.io.remote import RemoteError, RemoteFolder

KEYS_FILE = "keys/keys.json"
SETTING = "data.catalog"


def open_catalog_at(where: str, cache: str | None, cache_gb: float) -> Catalog:
    """The catalogue in a folder or behind a URL.

    Args:
        cache: folder on this machine's disk for what is fetched; a URL needs one.
        cache_gb: what all shards in it may have together.

    Raises:
        UserError: there is no whole catalogue, or no cache.
    """
    if "://" not in where:
        return Catalog(where)
    if cache is None:
        raise UserError(f"{SETTING}={where}: is a URL: set data.cache to a folder on this machine's own disk")
    root = Path(cache)
    try:
        folder = _fetch_index(RemoteFolder(where, SETTING), root)
    except OSError as error:
        raise UserError(f"data.cache={cache}: {error.filename}: {error.strerror}; mend that") from None
    return Catalog(folder, ShardCache(where, root, folder, int(cache_gb * 1e9)))


def cache_warning(catalog: Catalog, block: int, window: int) -> str | None:
    """A line for a cache that does not hold what a window of so many blocks reads at a time; None where it does."""
    cache = catalog.cache
    if cache is None:
        return None
    shards = min(catalog.num_shards, math.ceil(window * (1 + (block - 1) / catalog.items_per_shard)))
    shards = catalog.num_shards if len(catalog) <= block * window else shards
    try:
        size = RemoteFolder(cache.url, SETTING).size(shard_file(0))
    except RemoteError:
        return None  # whoever reads it says so
    if shards * size <= cache.bound:
        return None
    per_shard = catalog.items_per_shard
    return (
        f"WARNING: data.cache_gb={cache.bound / 1e9:g} holds about {cache.bound // size} shards of {size / 1e6:.3g} "
        f"MB, and a window of the order of samples reads {shards}: shards are fetched again and again; set "
        f"data.cache_gb to {shards * size / 1e9:.3g}, or data.shuffle_block to {per_shard}, the items of a shard, and "
        f"data.shuffle_window to {max(1, cache.bound // size // 3)}"
    )


def _fetch_index(remote: RemoteFolder, root: Path) -> Path:
    """The folder of everything but the shards; another one for each content that the catalogue has had."""
    try:
        content = remote.get_bytes(CATALOG_FILE)
        keys = _keys(remote)
    except RemoteError as error:
        raise UserError(f"{SETTING}={remote}: no catalogue can be read there ({error})") from None
    name = f"{zlib.crc32(content):08x}{zlib.crc32(keys or b''):08x}"
    folder = root / name
    with locked(root / f".{name}.lock"):
        if folder.exists():
            return folder
        for left in root.glob(f".{name}.*"):  # of a start that was killed
            if left.is_dir():
                shutil.rmtree(left)
        names = [INDEX_FILE, ID_HASH_FILE, ID_ITEM_FILE, *map(split_file, SPLITS)]
        if keys is not None:
            names += [f"keys/{facts['file']}" for facts in json.loads(keys)["arrays"].values()]
        with replacing(folder) as beside:
            beside.mkdir()
            (beside / CATALOG_FILE).write_bytes(content)
            try:
                for each in names:
                    (beside / each).parent.mkdir(exist_ok=True)
                    remote.get(each, beside / each)
                if keys is not None:
                    (beside / KEYS_FILE).write_bytes(keys)
                Catalog(beside).require_whole_index()
            except (RemoteError, UserError) as error:
                raise UserError(f"{SETTING}={remote}: its index cannot be fetched ({error})") from None
    return folder


def _keys(remote: RemoteFolder) -> bytes | None:
    """`keys.json`; None where the catalogue has no identity keys."""
    try:
        return remote.get_bytes(KEYS_FILE)
    except RemoteError as error:
        if not error.missing:
            raise
        return None
