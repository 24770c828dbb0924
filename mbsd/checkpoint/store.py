"""The commit protocol of a run's checkpoints; it knows files, not torch.

Every rank writes its files into a hidden folder, syncs them and hands in their sizes and checksums; these become
`manifest.json`, one rename publishes the folder, and `latest` is then replaced atomically. `latest` is only a hint: the
newest folder whose manifest holds wins, so a run killed at any moment finds the last complete checkpoint. Old ones are
removed after the new one stands.

Checksums are SHA-256: tamper-proof, and with the CPU's own instructions 1.7 GB/s of one core, twice BLAKE2b (CRC-32
makes 4.0, but anyone can forge it). A part is what lies on one file system: all of a checkpoint, or where every node
has its own disk the files of the node's ranks, each with a manifest of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mbsd.errors import UserError
from mbsd.io.files import fsync, naming, replace_text

MANIFEST = "manifest.json"
LATEST = "latest"
CHUNK = 16 << 20  # bytes hashed and written at once: both leave the interpreter's lock to the training loop
_NAME = re.compile(r"step-(\d{8,})")


class FileFacts(NamedTuple):
    """A file's entry in the manifest."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """One part of a checkpoint: `part` of `parts`, written by some of `world_size` ranks."""

    step: int
    world_size: int
    part: int
    parts: int
    files: dict[str, FileFacts]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(facts.size for facts in self.files.values())


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the `last` complete ones, and those of `every` so many steps (0: none)."""

    last: int
    every: int = 0


class BrokenError(Exception):
    """A checkpoint differs from its manifest, or has none; the message names the file."""


def name_of(step: int) -> str:
    """The folder of a step."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a folder."""
    match = _NAME.fullmatch(folder.name)
    assert match is not None, folder
    return int(match[1])


def is_step(folder: Path) -> bool:
    """Whether this is the name of a published folder."""
    return _NAME.fullmatch(folder.name) is not None


def folders(root: Path) -> list[Path]:
    """The published folders below `root`, newest first, complete or not."""
    # What the listing itself says of each: asked afterwards, the only one may be gone because a newer one has come.
    with os.scandir(root) if root.is_dir() else nullcontext(()) as entries:
        found = [root / entry.name for entry in entries if _NAME.fullmatch(entry.name) and entry.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def root_of(source: str) -> Path:
    """Where a run folder, its `checkpoints/`, or a folder that holds `step-…` folders keeps them.

    Raises:
        UserError: there is nothing of that kind.
    """
    path = Path(source)
    for root in (path / "checkpoints", path):
        if folders(root):
            return root
    raise UserError(f"{source}: holds no checkpoint; name a run folder that has a checkpoints/step-… folder")


def writing_folder(root: Path, step: int, attempt: str) -> Path:
    """The hidden folder that one attempt to save `step` writes into; two writers never share one."""
    return root / f".{name_of(step)}.{attempt}.writing"


def sweep(root: Path) -> None:
    """Remove what interrupted saves left; call it as the owner of `root`, before the first save."""
    for path in [*root.glob(".step-*.writing"), *root.glob(".step-*.replaced")]:
        # An older start may still be writing into it; what stays now is swept by the next start.
        shutil.rmtree(path, ignore_errors=True)


def write_file(path: Path, data: memoryview) -> FileFacts:
    """Write and sync one file, hashing what is written on the way.

    Raises:
        OSError: it cannot be written; the name is in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        with naming(path):
            for start in range(0, len(data), CHUNK):
                rest = data[start : start + CHUNK]
                digest.update(rest)
                while rest:
                    written = os.write(descriptor, rest)
                    size, rest = size + written, rest[written:]
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileFacts(size, digest.hexdigest())


def write_text(path: Path, text: str) -> FileFacts:
    """`write_file` of a text."""
    return write_file(path, memoryview(text.encode()))


def commit(writing: Path, manifest: Manifest, allowed: Callable[[], None] = lambda: None) -> Path:
    """Publish a written part under its final name; returns that. One process calls it, after all have written.

    `allowed` is asked last, right before the rename, and raises where another start of the run has taken over.
    """
    write_text(writing / MANIFEST, json.dumps(asdict(manifest), indent=1))
    for folder in {path.parent for path in writing.rglob("*")}:
        fsync(folder)
    final = writing.parent / name_of(manifest.step)
    allowed()
    if final.exists():  # a broken one, or one that this run has gone back behind
        old = writing.with_suffix(".replaced")
        os.rename(final, old)
        os.rename(writing, final)
        shutil.rmtree(old)
    else:
        os.rename(writing, final)
    fsync(final.parent)
    return final


def mark_latest(final: Path) -> list[str]:
    """Let `latest`, the hint, name a published part.

    Returns:
        A line that says why it could not be written, or none: a checkpoint is whole without it.
    """
    try:
        replace_text(final.parent / LATEST, final.name)
    except OSError as error:
        return [f"{error.filename}: {error.strerror}; {final.name} is whole all the same"]
    return []


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a part.

    Raises:
        BrokenError: it is missing or is no manifest of this folder.
    """
    try:
        data = (folder / MANIFEST).read_bytes()
    except FileNotFoundError as error:
        raise BrokenError(f"{MANIFEST}: missing") from error
    except OSError as error:
        raise BrokenError(f"{MANIFEST}: not a manifest ({type(error).__name__}: {error})") from error
    return parse_manifest(data, folder.name)


def parse_manifest(data: bytes, name: str) -> Manifest:
    """The manifest of the folder `name` that these bytes are.

    Raises:
        BrokenError: they are none.
    """
    try:
        tree: dict[str, Any] = json.loads(data.decode())
        files = {str(name): FileFacts(int(size), str(digest)) for name, (size, digest) in tree.pop("files").items()}
        manifest = Manifest(files=files, **{name: int(value) for name, value in tree.items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenError(f"{MANIFEST}: not a manifest ({type(error).__name__}: {error})") from error
    if name_of(manifest.step) != name:
        raise BrokenError(f"{MANIFEST}: is of {name_of(manifest.step)}")
    return manifest


def wrong_sizes(folder: Path, manifest: Manifest) -> list[str]:
    """Files that are missing or not of their size, in words: what is quickly seen."""
    wrong = []
    for name, facts in manifest.files.items():
        found: int | None
        try:
            found = (folder / name).stat().st_size
        except FileNotFoundError:
            found = None
        if found != facts.size:
            is_there = "missing" if found is None else f"{found} bytes"
            wrong.append(f"{name}: {is_there}, expected {facts.size} bytes")
    return wrong


def wrong_checksums(folder: Path, files: Mapping[str, FileFacts]) -> list[str]:
    """Files whose bytes are not the ones that were written, in words."""
    wrong = []
    for name, facts in files.items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            wrong.append(f"{name}: {error.strerror}")
            continue
        if found != facts.sha256:
            wrong.append(f"{name}: its checksum is {found[:12]}…, expected {facts.sha256[:12]}…")
    return wrong


def broken_files(folder: Path, *, checksums: bool = False, below: str = "") -> list[str]:
    """What keeps a part from being as it was written, in words; empty where nothing does.

    Args:
        checksums: read every file too, of those whose names begin with `below`.
    """
    try:
        manifest = read_manifest(folder)
    except BrokenError as error:
        return [str(error)]
    wrong = wrong_sizes(folder, manifest)
    if wrong or not checksums:
        return wrong
    return wrong_checksums(folder, {name: facts for name, facts in manifest.files.items() if name.startswith(below)})


def newest(root: Path, *, checksums: bool = False, below: str = "") -> Path | None:
    """The newest part below `root` that is as it was written, if there is one; arguments as of `broken_files`."""
    return next((f for f in folders(root) if not broken_files(f, checksums=checksums, below=below)), None)


def superfluous(
    steps: Iterable[tuple[int, bool]], published: int, keep: Keep, protected: Collection[int]
) -> Iterator[int]:
    """Of (step, whether it is complete), newest first: the steps that `published`, which stands, makes superfluous.

    The newest `keep.last` complete ones up to it stay, those of every `keep.every`-th step, and the `protected` ones.
    Later steps are not counted and stay: a run that went back behind broken ones writes them again.
    """
    kept = 0
    for step, complete in steps:
        if step > published:
            continue
        if step == published or complete:
            kept += 1
            if kept <= max(1, keep.last):
                continue
        if not (step in protected or (keep.every and step % keep.every == 0)):
            yield step


def prune(
    root: Path, published: int, keep_last: int, keep_every: int = 0, protected: Collection[int] = ()
) -> list[str]:
    """Remove what `published`, which has just been written and stands, makes superfluous; returns what could not be.

    What stays: see `superfluous`.
    """
    failures = []
    steps = ((step_of(folder), not broken_files(folder)) for folder in folders(root))
    for step in superfluous(steps, published, Keep(keep_last, keep_every), protected):
        folder = root / name_of(step)
        try:
            # Hidden first: a half-removed folder must not look like a broken checkpoint.
            gone = root / f".{folder.name}.replaced"
            os.rename(folder, gone)
            shutil.rmtree(gone)
        except OSError as error:
            failures.append(f"{folder}: cannot be removed ({error.strerror})")
    return failures
