"""An unfinished catalogue, `OUT.building`: shards are committed one after the other, so that a kill loses one at most.

build.json                 what has to be equal for a build to be resumed; locked by the process that works on it
catalog/shards/            what will be the catalogue
parts/000000.json          the commit of a shard, with the rows that were left out of it, written last
parts/000000.arrow         the shard's rows of the index
parts/000000.*.jsonl       rows that were quarantined or repeat an item id, up to the shard's end
quarantine.jsonl           only after a build that stopped for too many rejects: those of all shards
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from mbsd.catalog.checksums import CHECKSUM, require_whole_meta, sealed
from mbsd.catalog.layout import QUARANTINE_FILE, reason_of
from mbsd.errors import UserError
from mbsd.io.console import say
from mbsd.io.files import fsync, replace_text

BUILD_FILE = "build.json"
HOW_TO_RESUME = "give the same options and source to go on with it, or --restart to begin anew"
READ_BYTES = 2**20


@dataclass
class Commit:
    """The commit of a shard, also while it is being written. Counts are of the whole build up to this shard's end.

    Attributes:
        number: the shard's number; -1 = nothing is committed yet.
        rows: rows of the source that were processed.
        digest: sha256 of those rows in hex; see `source_rows.SourceRow`.
        items: items written.
        with_image: how many of them have a picture.
        named: rows that name a picture, where pictures are looked up.
        rejected: how many of those pictures were rejected.
        quarantined: lines of the quarantine.
        repeated: rows whose item id an earlier row has.
        last: whether the source ended with this shard.
        files: path below the build's folder -> [size, crc32].
    """

    number: int = -1
    rows: int = 0
    digest: str = ""
    items: int = 0
    with_image: int = 0
    named: int = 0
    rejected: int = 0
    quarantined: int = 0
    repeated: int = 0
    last: bool = False
    files: dict[str, list[int]] = field(default_factory=dict)


class UnfinishedBuild:
    """The folder of one build, locked by this process.

    Attributes:
        path: the folder.
        catalog: the folder in it that will be the catalogue.
        commits: of its shards; at first of an interrupted build's, up to the first whose files are not whole.
    """

    def __init__(self, out: Path, identity: dict[str, Any], *, restart: bool):
        """Open the folder beside `out`, or make it; remove what belongs to no complete shard.

        Args:
            out: where the catalogue will be.
            identity: what must be equal for an interrupted build to be resumed; JSON.
            restart: discard an interrupted build.

        Raises:
            UserError: another process works on it, or it was begun with another identity.
        """
        self.path = building(out)
        self.catalog, self._out = self.path / "catalog", out
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = self._locked()
        identity = json.loads(json.dumps(identity))
        if restart:
            self._empty()
        before = self._lock.read()
        if before and before != _json(identity) and any(self.path.glob("parts/*.json")):
            self._lock.close()
            raise UserError(
                f"{self.path}: an unfinished build {differences(_parsed(before), identity)}; {HOW_TO_RESUME}"
            )
        if before != _json(identity):
            self._empty()
            self._lock.write(_json(identity))
            self._lock.flush()
        for folder in (self.catalog / "shards", self.path / "parts"):
            folder.mkdir(parents=True, exist_ok=True)
        self.commits = list(self._complete())
        self._remove_all_but(self.commits)

    def __enter__(self) -> UnfinishedBuild:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock; remove the folder where it holds nothing to resume and no list of rejects."""
        if self.path.exists() and not self.commits and not (self.path / QUARANTINE_FILE).exists():
            shutil.rmtree(self.path)
        self._lock.close()

    def commit_file(self, number: int, suffix: str) -> Path:
        """Return the path of a commit's file; the suffix is json, arrow, quarantine.jsonl or repeated.jsonl."""
        return self.path / "parts" / f"{number:06d}.{suffix}"

    def commit(self, commit: Commit, files: list[Path]) -> None:
        """Commit a shard, all of whose files are written; sets its `files`."""
        commit.files = {str(file.relative_to(self.path)): list(_size_and_crc32(file)) for file in files}
        replace_text(self.commit_file(commit.number, "json"), _json(sealed(dataclasses.asdict(commit))))
        self.commits.append(commit)

    def lines(self, suffix: str) -> Iterator[str]:
        """Yield the lines of all shards' files of this kind, in order; also of the shard that is being written."""
        for file in sorted(self.path.glob(f"parts/*.{suffix}")):
            with file.open(encoding="utf-8") as lines:
                yield from lines

    def reasons(self) -> Counter[str]:
        """Return how often each reason occurs in the quarantine, numbers replaced by N."""
        return Counter(reason_of(line) for line in self.lines(QUARANTINE_FILE))

    def publish(self) -> None:
        """Move the finished `catalog` folder to its place, and remove the rest."""
        self.catalog.rename(self._out)
        fsync(self._out.parent)
        shutil.rmtree(self.path)

    def publish_part(self) -> None:
        """Move the whole folder to its place, as a part of a catalogue (see `finished_part`)."""
        self.path.rename(self._out)
        fsync(self._out.parent)

    def _locked(self) -> IO[str]:
        file = (self.path / BUILD_FILE).open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel releases it when the process ends
        except BlockingIOError:
            file.close()
            raise UserError(f"{self.path}: another process is building this catalogue; wait for it or end it") from None
        file.seek(0)
        return file

    def _empty(self) -> None:
        self._lock.truncate(0)
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != BUILD_FILE:
                entry.unlink()

    def _complete(self) -> Iterator[Commit]:
        """The commits up to the first that is not as it was committed; that one is named."""
        for number, file in enumerate(sorted(self.path.glob("parts/*.json"))):
            commit, damaged = self._read(file)
            if commit is None or commit.number != number:
                what = damaged or f"the commit before {file.name} is gone"
                say(f"WARNING: {self.path}: {what}: part {number} and what follows it are built again")
                return
            yield commit

    def _read(self, file: Path) -> tuple[Commit | None, str]:
        """A commit, or None and which file is not as it was written."""
        commit = read_commit(file)
        if commit is None:
            return None, f"{file.relative_to(self.path)} is not as it was written"
        damaged = damaged_file(self.path, commit)
        return (None, f"{damaged} is not as it was written") if damaged else (commit, "")

    def _remove_all_but(self, commits: list[Commit]) -> None:
        keep = {self.commit_file(commit.number, "json") for commit in commits}
        keep |= {self.path / name for commit in commits for name in commit.files}
        for file in [file for file in self.path.rglob("*") if file.is_file() and file.name != BUILD_FILE]:
            if file not in keep:
                file.unlink()


def building(out: Path) -> Path:
    """Return the folder of the unfinished build of `out`."""
    return out.with_name(out.name + ".building")


def read_commit(file: Path) -> Commit | None:
    """Return a shard's commit; None where it is not as it was written."""
    try:
        facts = json.loads(file.read_text("utf-8"))
        require_whole_meta(facts, file)
        facts.pop(CHECKSUM, None)
        return Commit(**facts)
    except (ValueError, TypeError, AttributeError, UserError):
        return None


def damaged_file(folder: Path, commit: Commit, names: Iterable[str] | None = None) -> str:
    """Return the name of the first of a shard's files, or of those named, that is not as it was committed; or ""."""
    names = commit.files if names is None else names
    return next((name for name in names if list(_size_and_crc32(folder / name)) != commit.files[name]), "")


def require_free(out: Path) -> None:
    """Raise UserError where `out` is more than an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        _remove_published(out)
        raise UserError(f"{out}: already there and not an empty folder; choose another name or remove it")


def _remove_published(out: Path) -> None:
    """Remove the folder of a build that was killed between the two steps of `UnfinishedBuild.publish`."""
    unfinished = building(out)
    if (unfinished / BUILD_FILE).exists() and not (unfinished / "catalog").exists():
        shutil.rmtree(unfinished)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def differences(then: Any, now: Mapping[str, Any]) -> str:
    """Return in words how an earlier build's options differ from these; `then` is no mapping where they are unknown."""
    if not isinstance(then, dict):
        return "whose options cannot be read"
    changed = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    return "with " + ", ".join(f"{name} {_json(then.get(name))}, now {_json(now.get(name))}" for name in changed)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _size_and_crc32(file: Path) -> tuple[int, int]:
    """Size in bytes and CRC-32; (-1, 0) where there is no such file."""
    size, crc32 = 0, 0
    try:
        with file.open("rb") as data:
            while block := data.read(READ_BYTES):
                size, crc32 = size + len(block), zlib.crc32(block, crc32)
    except FileNotFoundError:
        return -1, 0
    return size, crc32
