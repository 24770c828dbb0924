"""A run's checkpoints in object storage: the copy that is left when a disk is not.

`URL/step-00001000/` holds the files of all parts of a checkpoint as they lie on the nodes' disks and, written last,
one `manifest.json` of all of them. A folder without it is no checkpoint: it is removed last of all files before they
are written again, and first when the folder is removed. `URL/owner.json` names the start that may write.

Every file that was written is read back and its SHA-256 compared with the one that was taken of the bytes in memory
when the checkpoint was saved. That is twice the traffic, behind the training; in return it holds for every store.
What S3 checks by itself is each request on its way, not what was on the disk before it, and file:// checks nothing.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mbsd.checkpoint import store
from mbsd.checkpoint.store import FileFacts, Keep, Manifest
from mbsd.io.files import difference, fsync
from mbsd.io.remote import RemoteError, RemoteFolder

OWNER = "owner.json"
SETTING = "run.mirror"


class TakenOverError(Exception):
    """Another start of the run writes to the mirror now."""


class Mirror:
    """The checkpoints below a URL. Methods raise RemoteError where the store fails.

    Args:
        url: of any store that fsspec opens.
        beat: called now and then by those who wait for a long copy.

    Raises:
        UserError: no library that opens such a URL is installed.
    """

    def __init__(self, url: str, beat: Callable[[], None] = lambda: None) -> None:
        self.folder, self.beat = RemoteFolder(url, SETTING), beat

    def __str__(self) -> str:
        """Its URL."""
        return str(self.folder)

    def steps(self) -> dict[int, bool]:
        """Step -> whether its manifest is there, newest first."""
        return steps_of(self.folder.sizes())

    def manifest(self, step: int) -> Manifest:
        """The manifest of a step.

        Raises:
            BrokenError: it is missing, or is no manifest of this step.
        """
        name = store.name_of(step)
        try:
            return store.parse_manifest(self.folder.get_bytes(f"{name}/{store.MANIFEST}"), name)
        except RemoteError as error:
            if not error.missing:
                raise
            raise store.BrokenError(f"{store.MANIFEST}: missing") from None

    def read_json(self, step: int, name: str, facts: FileFacts) -> dict[str, Any]:
        """A JSON file of a checkpoint.

        Raises:
            BrokenError: it is not as it was written.
        """
        data = self.folder.get_bytes(f"{store.name_of(step)}/{name}")
        if hashlib.sha256(data).hexdigest() != facts.sha256:
            raise store.BrokenError(f"{name}: not as it was written")
        found: dict[str, Any] = json.loads(data)
        return found

    def send(self, source: Path, step: int, files: Mapping[str, FileFacts]) -> None:
        """Copy a checkpoint's files from the local folder `source` and read each of them back."""
        for name, facts in files.items():
            remote = f"{store.name_of(step)}/{name}"
            self.folder.put(source / name, remote)
            found = self.folder.digest(remote)
            if found != facts.sha256:
                raise RemoteError(
                    f"{self}/{remote}: reads back with checksum {found[:12]}…, expected {facts.sha256[:12]}…"
                )

    def wrong_sizes(self, manifest: Manifest) -> list[str]:
        """Files that are missing or not of their size, in words."""
        sizes, name = self.folder.sizes(), store.name_of(manifest.step)
        found = {path: sizes.get(f"{name}/{path}") for path in manifest.files}
        return [
            f"{path}: {'missing' if found[path] is None else f'{found[path]} bytes'}, expected {facts.size} bytes"
            for path, facts in manifest.files.items()
            if found[path] != facts.size
        ]

    def wrong_checksums(self, manifest: Manifest) -> list[str]:
        """Files whose bytes are not the ones that were written, in words; all are read."""
        digests = {path: self.folder.digest(f"{store.name_of(manifest.step)}/{path}") for path in manifest.files}
        return [
            f"{path}: its checksum is {digests[path][:12]}…, expected {facts.sha256[:12]}…"
            for path, facts in manifest.files.items()
            if digests[path] != facts.sha256
        ]

    def publish(self, manifest: Manifest) -> None:
        """Write the manifest: all its files are there."""
        text = json.dumps(asdict(manifest), indent=1)
        self.folder.put_bytes(text.encode(), f"{store.name_of(manifest.step)}/{store.MANIFEST}")

    def withdraw(self, step: int) -> None:
        """Remove a step's manifest, before its files are written anew."""
        self.folder.remove(f"{store.name_of(step)}/{store.MANIFEST}")

    def prune(self, published: int, keep: Keep, protected: Collection[int]) -> None:
        """Remove what `published`, which stands, makes superfluous, by the rule of `store.prune`."""
        for step in store.superfluous(self.steps().items(), published, keep, protected):
            self.withdraw(step)
            self.folder.remove(store.name_of(step))

    def fetch(self, step: int, files: Mapping[str, FileFacts], into: Path) -> None:
        """Copy files into a local folder, synced, and compare each with its checksum.

        Raises:
            BrokenError: one of them is not as it was written; the message names it.
            OSError: the local disk fails.
        """
        for name, facts in files.items():
            local = into / name
            local.parent.mkdir(parents=True, exist_ok=True)
            self.folder.get(f"{store.name_of(step)}/{name}", local)
            if wrong := difference(local, {"bytes": facts.size, "sha256": facts.sha256}):
                raise store.BrokenError(f"{name}: {wrong}")
            fsync(local)

    def claim(self, token: str) -> None:
        """Make the start with this token the one that writes."""
        owner = {"token": token, "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        self.folder.put_bytes(json.dumps(owner, indent=1).encode(), OWNER)

    def check(self, token: str) -> None:
        """Raise TakenOverError where another start has claimed the mirror since."""
        owner = json.loads(self.folder.get_bytes(OWNER))
        if owner["token"] != token:
            raise TakenOverError(
                f"{self}: a start of the run on {owner['host']} has taken it over, since {owner['since']}"
            )


def steps_of(sizes: Mapping[str, int]) -> dict[int, bool]:
    """`Mirror.steps` of a listing."""
    names = {Path(name).parts[0] for name in sizes}
    found = {
        store.step_of(Path(name)): f"{name}/{store.MANIFEST}" in sizes for name in names if store.is_step(Path(name))
    }
    return dict(sorted(found.items(), reverse=True))
