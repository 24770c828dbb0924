"""A finished part of a catalogue that is built on several machines: the folder of a build that has read all its source.

part.json       which part, of which source, with which options; written last, before the folder gets its name
catalog/        the part's shards, whose items are numbered by themselves
parts/          commits, rows of the index, and lists of rows, each with its number in the source (see `unfinished`)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mbsd.catalog.build.finish import BuildSummary, summary_of
from mbsd.catalog.build.options import BuildOptions, PartOf
from mbsd.catalog.build.shard_writer import StoredItem
from mbsd.catalog.build.unfinished import Commit, UnfinishedBuild, building, damaged_file, differences, read_commit
from mbsd.catalog.checksums import CHECKSUM, require_whole_meta, sealed
from mbsd.catalog.layout import QUARANTINE_FILE, shard_file
from mbsd.errors import UserError
from mbsd.io.files import replace_text

PART_FILE = "part.json"
ITEMS_AT_ONCE = 256
BUILD_AGAIN = "remove the folder and build this part again"


def publish_part(
    unfinished: UnfinishedBuild, done: Commit, identity: Mapping[str, Any], options: BuildOptions
) -> BuildSummary:
    """Write `part.json` and move the part's folder to its place.

    Args:
        unfinished: the part's folder.
        done: its last commit.
        identity: what the shards' bytes depend on, and which part it is.
        options: of the build.
    """
    facts = {
        "options": _options(identity, options),
        "source": {"rows": done.rows, "digest": done.digest},
        "shards": len(unfinished.commits),
    }
    text = json.dumps(sealed(facts), ensure_ascii=False, indent=2)
    replace_text(unfinished.path / PART_FILE, f"{text}\n")
    summary = summary_of(done, unfinished.lines(QUARANTINE_FILE))
    unfinished.publish_part()
    return summary


def finished_before(out: Path, identity: Mapping[str, Any], options: BuildOptions) -> BuildSummary | None:
    """Return what is in the part's folder where it is finished; None where it is not.

    Raises:
        UserError: it is damaged, or was built with other options.
    """
    if options.restart or not (out / PART_FILE).exists():
        return None
    part, asked = FinishedPart(out), json.loads(json.dumps(_options(identity, options)))
    if part.options != asked:
        raise UserError(
            f"{out}: a finished part {differences(part.options, asked)}; give the same options, choose another name or "
            "remove it"
        )
    summary = summary_of(part.commits[-1], (line for _, line in part.lines(QUARANTINE_FILE)))
    summary.resumed_from = part.rows
    return summary


class FinishedPart:
    """A part's folder; its files are compared with their checksums when they are first read.

    Attributes:
        path: the folder.
        options: name -> value of what all parts of a catalogue have in common, and `part`.
        rows: number of rows of the whole source.
        digest: sha256 of them in hex.
        commits: of its shards, in order; the last one counts for the whole part.
        checksum: of `part.json`.
    """

    def __init__(self, path: Path):
        """Read `part.json` and the commits.

        Raises:
            UserError: it is no finished part, or damaged.
        """
        self.path = path
        try:
            facts = json.loads((path / PART_FILE).read_text("utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: {_what_it_is(path)}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path / PART_FILE}: cannot be read ({error}); {BUILD_AGAIN}") from None
        if not isinstance(facts, dict) or CHECKSUM not in facts:
            raise UserError(f"{path / PART_FILE}: damaged, its content is not what was written; {BUILD_AGAIN}")
        require_whole_meta(facts, path / PART_FILE, BUILD_AGAIN)
        self.options: dict[str, Any] = facts["options"]
        self.checksum = int(facts[CHECKSUM])
        self.rows, self.digest = int(facts["source"]["rows"]), str(facts["source"]["digest"])
        self.commits = [self._commit(number) for number in range(facts["shards"])]

    @property
    def part(self) -> PartOf:
        """Which part it is."""
        return PartOf(**self.options["part"])

    def items(self, after: int) -> Iterator[StoredItem]:
        """Yield the items whose row in the source is behind `after`, in order.

        Raises:
            UserError: a file is damaged.
        """
        for commit in self.commits:
            files = [name for name in commit.files if not name.endswith(".jsonl")]
            if commit.rows > after and files:
                self._require_whole(commit, files)
                yield from self._items_of_shard(commit.number, after)

    def lines(self, suffix: str) -> Iterator[tuple[int, str]]:
        """Yield (row of the source, line) of a list of rows, `QUARANTINE_FILE` or `REPEATED_FILE`, in order.

        Raises:
            UserError: a file is damaged.
        """
        for commit in self.commits:
            name = f"parts/{commit.number:06d}.{suffix}"
            if name in commit.files:
                self._require_whole(commit, [name])
                with (self.path / name).open(encoding="utf-8") as lines:
                    yield from ((json.loads(line)["row"], line) for line in lines)

    def _commit(self, number: int) -> Commit:
        file = self.path / "parts" / f"{number:06d}.json"
        commit = read_commit(file)
        if commit is None or commit.number != number:
            raise UserError(f"{file}: damaged, its content is not what was written; {BUILD_AGAIN}")
        return commit

    def _require_whole(self, commit: Commit, files: list[str]) -> None:
        damaged = damaged_file(self.path, commit, files)
        if damaged:
            raise UserError(f"{self.path / damaged}: damaged, its bytes are not those that were written; {BUILD_AGAIN}")

    def _items_of_shard(self, number: int, after: int) -> Iterator[StoredItem]:
        index = pa.ipc.open_file(pa.memory_map(str(self.path / "parts" / f"{number:06d}.arrow"))).get_batch(0)
        places = (self.path / "catalog" / shard_file(number, "idx")).read_text("utf-8").splitlines()[1:]
        begin = int(np.searchsorted(index.column("row").to_numpy(), after, side="right"))
        with (self.path / "catalog" / shard_file(number)).open("rb") as tar:
            for start in range(begin, index.num_rows, ITEMS_AT_ONCE):
                facts = index.slice(start, ITEMS_AT_ONCE).to_pylist()
                for fact, line in zip(facts, places[start : start + ITEMS_AT_ONCE], strict=True):
                    yield _stored(fact, line, tar.fileno())


def _stored(facts: dict[str, Any], line: str, tar: int) -> StoredItem:
    """Read an item's members by its line of DALI's index: suffix, offset, size and name of each."""
    suffixes, offsets, sizes, _ = (line.split()[n::4] for n in range(4))
    members = {
        suffix: os.pread(tar, int(size), int(offset))
        for suffix, offset, size in zip(suffixes, offsets, sizes, strict=True)
    }
    return StoredItem(members["json"], members.get("jpg", b""), facts)


def _options(identity: Mapping[str, Any], options: BuildOptions) -> dict[str, Any]:
    return {**identity, "attribute_where": dict(options.attribute_where)}


def _what_it_is(path: Path) -> str:
    unfinished = path if path.name.endswith(".building") else building(path)
    if unfinished.exists():
        return "an unfinished part; run its command again, which resumes it"
    if not path.exists():
        return "no such folder; build this part"
    return f"not a finished part: it has no {PART_FILE}; give folders written by `mbsd catalog build --part K/N`"
