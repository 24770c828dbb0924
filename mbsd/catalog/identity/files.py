"""The files of identity keys, `<catalog>/keys/`: `keys.json` and one memory-mapped .npy a kind.

`keys.json` names the arrays that count, with their checksums. It is replaced last: until new arrays are whole,
and while a run reads the old ones, the old ones stay valid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbsd.catalog.checksums import crc32_of_file, require_whole_meta, sealed
from mbsd.catalog.layout import id_hash
from mbsd.catalog.reader import Catalog
from mbsd.catalog.several import Catalogs, Items
from mbsd.errors import UserError
from mbsd.io.files import read_own_json, replace_text, replacing

Int64 = NDArray[np.int64]

KINDS = ("product", "title", "picture", "near_picture")
NO_KEY = -1  # as in mbsd.batch, which imports torch: a second that no command of the catalogue should wait for
VERSION = 1
KEYS_DIR, KEYS_FILE = "keys", "keys.json"
COMMAND = "mbsd catalog keys"


class ItemKeys:
    """The keys of a catalogue's items, memory-mapped; pickled, it is paths and the fingerprint of what they hold.

    Attributes:
        names: the K kinds that there are, of those that were asked for, in that order.
        digest: changes with the keys: of kinds and checksums. "" where there are none.
    """

    def __init__(self, folder: Path, files: Mapping[str, str], num_items: int) -> None:
        """Map the arrays.

        Args:
            folder: `keys/` of a catalogue.
            files: kind -> name of its array there.
            num_items: of the catalogue.

        Raises:
            UserError: an array is missing, or no array of so many keys.
        """
        self.names = tuple(files)
        self.digest = ",".join(Path(file).stem for file in files.values())
        self._state = (folder, dict(files), num_items)
        self._arrays = [_mapped(folder / file, num_items) for file in files.values()]

    def __getstate__(self) -> dict[str, Any]:
        return {"state": self._state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*state["state"])  # type: ignore[misc]

    def of(self, items: Int64) -> Int64:
        """Return the keys int64 [B, K] of the items int64 [B]; NO_KEY where an item has none of a kind."""
        keys_BK = np.empty((len(items), len(self.names)), dtype=np.int64)
        for column, array in enumerate(self._arrays):
            keys_BK[:, column] = array[items]
        return keys_BK


class JointKeys:
    """The keys of several catalogues' items: the same key in two of them is not the same product.

    Attributes:
        names: the K kinds that any of them has, of those that were asked for, in that order.
        digest: changes with the keys of any.
    """

    def __init__(self, catalogs: Catalogs, same: Sequence[str], each: Sequence[ItemKeys]) -> None:
        self.names = tuple(kind for kind in same if any(kind in keys.names for keys in each))
        self.digest = ";".join(keys.digest for keys in each)
        self._catalogs, self._each = catalogs, tuple(each)
        self._columns = [[self.names.index(kind) for kind in keys.names] for keys in each]
        # Keys of two catalogues differ in the bits of these; the first catalogue's are as they are.
        self._marks = [0, *(id_hash(f"catalogue {place}") >> 1 for place in range(1, len(each)))]

    def of(self, items: Int64) -> Int64:
        """Return the keys int64 [B, K] of the items int64 [B]; NO_KEY where an item has none of a kind."""
        keys_BK = np.full((len(items), len(self.names)), NO_KEY, dtype=np.int64)
        places, own = self._catalogs.members_of(items)
        for place in np.unique(places).tolist():
            rows = np.flatnonzero(places == place)
            found = self._each[place].of(own[rows])
            keys_BK[np.ix_(rows, self._columns[place])] = np.where(
                found == NO_KEY, NO_KEY, found ^ np.int64(self._marks[place])
            )
        return keys_BK


def open_keys(catalog: Items, same: Sequence[str], *, required: bool) -> ItemKeys | JointKeys:
    """Return the keys of these kinds, as far as the catalogue has them, or each of several.

    Args:
        catalog: whose `keys/` is read.
        same: kinds, of KINDS.
        required: a catalogue without any of them is an error.

    Raises:
        UserError: a kind that does not exist; keys of another catalogue or version, or damaged ones; or none at all,
            where they are required.
    """
    unknown = next((kind for kind in same if kind not in KINDS), None)
    if unknown is not None:
        raise UserError(f"key {unknown!r}; expected one of {', '.join(KINDS)}")
    if isinstance(catalog, Catalogs):
        return JointKeys(catalog, same, [_keys_of(one, same, required=required) for one in catalog.members])
    return _keys_of(catalog, same, required=required)


def _keys_of(catalog: Catalog, same: Sequence[str], *, required: bool) -> ItemKeys:
    folder = catalog.path / KEYS_DIR
    meta = read_meta(catalog)
    arrays: dict[str, dict[str, Any]] = {} if meta is None else meta["arrays"]
    found = {kind: arrays[kind] for kind in same if kind in arrays}
    if required and not found:
        has = f"has keys of {', '.join(arrays)} alone" if arrays else "has no identity keys"
        raise UserError(
            f"catalogue {catalog.path} {has}, and {' or '.join(same) or 'none'} is asked for: nothing says which items "
            f"are the same product; write them with `{COMMAND} {catalog.path}`"
        )
    for facts in found.values():
        _require_whole(folder / facts["file"], facts, catalog)
    return ItemKeys(folder, {kind: facts["file"] for kind, facts in found.items()}, len(catalog))


def read_meta(catalog: Catalog) -> dict[str, Any] | None:
    """Return the content of `keys.json`, None where the catalogue has no keys.

    Raises:
        UserError: it is damaged, of another version, or of another catalogue.
    """
    path = catalog.path / KEYS_DIR / KEYS_FILE
    if not path.exists():
        return None
    again = _again(catalog.path)
    meta = read_own_json(path, again)
    version = meta.get("version") if isinstance(meta, dict) else None
    if version != VERSION:
        raise UserError(f"{path}: version {version!r}, this program reads version {VERSION}; {again}")
    require_whole_meta(meta, path, again)
    if meta["catalog"] != catalog.fingerprint:
        raise UserError(
            f"{path}: keys of another catalogue (fingerprint {meta['catalog'][:12]}…, expected "
            f"{catalog.fingerprint[:12]}…); {again}"
        )
    return dict(meta)


def publish_keys(catalog: Catalog, keys: Mapping[str, Int64], facts: Mapping[str, Any]) -> None:
    """Write the arrays and then `keys.json`, and remove the arrays that it no longer names.

    Args:
        catalog: whose keys they are.
        keys: kind -> int64 [items].
        facts: what else `keys.json` says; JSON.
    """
    folder = catalog.path / KEYS_DIR
    arrays: dict[str, dict[str, Any]] = {}
    for kind, array in keys.items():
        assert array.dtype == np.int64 and array.shape == (len(catalog),) and array.min(initial=NO_KEY) >= NO_KEY
        beside = folder / f"{kind}.new.npy"
        with replacing(beside) as unfinished, unfinished.open("wb") as file:
            np.save(file, array)
        crc32 = crc32_of_file(beside)
        name = (
            f"{kind}.{crc32:08x}.npy"  # another name for other content: a run that reads the old one is not disturbed
        )
        beside.replace(folder / name)
        arrays[kind] = {"file": name, "crc32": crc32}
    meta = sealed({"version": VERSION, "catalog": catalog.fingerprint, "arrays": arrays, **facts})
    replace_text(folder / KEYS_FILE, json.dumps(meta, ensure_ascii=False, indent=2) + "\n")
    named = {facts["file"] for facts in arrays.values()}
    for path in folder.glob("*.npy"):
        if path.name not in named:
            path.unlink()


def _require_whole(path: Path, facts: Mapping[str, Any], catalog: Catalog) -> None:
    try:
        crc32 = crc32_of_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {_again(catalog.path)}") from None
    if crc32 != facts["crc32"]:
        raise UserError(f"{path}: damaged, its bytes are not those that were written; {_again(catalog.path)}")


def _mapped(path: Path, num_items: int) -> Int64:
    """An array of keys; what it holds has been compared with its checksum where the run began."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); were the keys written anew while they were in use? start again"
        ) from None
    if array.dtype != np.int64 or array.shape != (num_items,):
        raise UserError(
            f"{path}: {array.dtype} {list(array.shape)}, expected int64 [{num_items}]; {_again(path.parent.parent)}"
        )
    return np.asarray(array)


def _again(catalog: Path) -> str:
    return f"write the keys again with `{COMMAND} {catalog}`"
