"""Which checkpoint a run resumes from: the newest one that every rank can read and whose checksums hold."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbsd.checkpoint import owner, store
from mbsd.checkpoint.best import result
from mbsd.checkpoint.claim import Claim
from mbsd.checkpoint.fetch import fetch_newer
from mbsd.checkpoint.mirror import Mirror
from mbsd.checkpoint.shards import file_name
from mbsd.checkpoint.storage import Storage
from mbsd.config.run_files import LAST_SAVED
from mbsd.errors import UserError, this_rank
from mbsd.io.console import say
from mbsd.io.files import difference, read_own_json
from mbsd.parallel.world import World, gather_objects, on_rank_zero, same_on_every_rank


@dataclass(frozen=True)
class Found:
    """A checkpoint to resume from."""

    folder: Path
    facts: dict[str, Any]
    """Its `run.json`."""


class NoneCompleteError(UserError):
    """Checkpoints are there, and none is complete."""


def take_over(
    folder: Path,
    storage: Storage,
    world: World,
    identity: Mapping[str, Any],
    say: Callable[[str], None],
    mirror: Mirror | None = None,
) -> tuple[str, Found | None]:
    """Make this start the owner of the run `folder` and find its newest checkpoint (collective).

    Args:
        mirror: where the run's checkpoints are copied to: where its newest complete one is newer, that is taken.

    Returns:
        The owner's token, which a save needs, and the checkpoint to resume from; None: the run has never saved.

    Raises:
        UserError: as of `find` and `fetch_newer`; or checkpoints were written and are gone; or a later restart owns the
            run already.
    """
    # A run that this start cannot resume is not taken over.
    with suppress(NoneCompleteError) if mirror is not None else nullcontext():
        find(storage, world, identity, say=say, verify=False)
    token = on_rank_zero(lambda: secrets.token_hex(4))
    with same_on_every_rank():
        if world.rank == storage.leader:
            owner.claim(storage.root, token)
            store.sweep(storage.root)
    incomplete, found = None, None
    try:
        found = find(storage, world, identity, say=say)
    except NoneCompleteError as error:
        incomplete = error
    if mirror is not None:
        claim = Claim(folder, world, storage, token, mirror)
        if fetch_newer(claim, int(found.facts["step"]) if found is not None else None, identity, say):
            return token, find(storage, world, identity, say=say)
    if incomplete is not None:
        raise incomplete
    if found is None and on_rank_zero((folder / LAST_SAVED).exists):
        raise UserError(
            f"{folder / LAST_SAVED}: names a checkpoint that the run wrote, and {storage.root} holds none; bring the "
            "checkpoints back, or choose another run.dir to start from scratch",
            shared=True,
        )
    return token, found


def find_elsewhere(source: str, world: World, identity: Mapping[str, Any], say: Callable[[str], None]) -> Found:
    """The checkpoint that `run.resume` names: a run folder's newest, or one `step-…` folder (collective).

    Raises:
        UserError: there is none, or as of `find`.
    """
    path = Path(source)
    one = store.step_of(path) if store.is_step(path) else None
    root = on_rank_zero(lambda: path.parent if one is not None else store.root_of(source))
    everyone = Storage(root, 0, tuple(range(world.size)), (0,))
    found = find(everyone, world, identity, say=say, only=one)
    if found is None:
        raise UserError(f"run.resume={source}: there is no such checkpoint; name a run folder or a step-… folder")
    return found


def find(
    storage: Storage,
    world: World,
    identity: Mapping[str, Any],
    *,
    say: Callable[[str], None],
    verify: bool = True,
    only: int | None = None,
) -> Found | None:
    """The checkpoint to resume from, the same on every rank (collective); None where there is none at all.

    Args:
        verify: read every file; False: only the file that identifies the run.
        only: this step and no other.

    Sizes choose; then the checksums of every file are verified, the ranks sharing the work. A file that is not as it
    was written makes all ranks take the next older checkpoint, and a line names it.

    Raises:
        UserError: checkpoints are there but none is complete, or the newest is of another run; a run never starts from
            scratch by accident.
    """
    while True:
        listed = _parts(storage.root) if world.rank == storage.leader else {}
        seen = gather_objects(listed)
        reasons: dict[int, str] = {}
        steps = {step for parts in seen for step in parts}
        for step in sorted(steps if only is None else steps & {only}, reverse=True):
            folder = storage.root / store.name_of(step)
            parts = [answer[step] for answer in seen if step in answer]
            why = _incomplete(parts)
            if why is None:
                needs = _needs(folder, parts[0], world)
                why = next((reason for reason in gather_objects(needs) if reason is not None), None)
            if why is None:
                why = next(
                    (reason for reason in gather_objects(_corrupt(folder, storage, world, verify)) if reason), None
                )
            facts: dict[str, Any] | str = why or on_rank_zero(lambda at=folder: _facts(at))  # type: ignore[misc]
            if isinstance(facts, dict):
                with same_on_every_rank():
                    _refuse_another_run(folder, facts, identity)
                return Found(folder, facts)
            if any(gather_objects(step in listed and not folder.is_dir())):
                break  # an older start still lives and has removed it meanwhile: look again
            reasons[step] = facts
            if verify:
                say(f"WARNING: {folder} is not taken: {facts}")
        else:
            break
    if reasons:
        newest = max(reasons)
        raise NoneCompleteError(
            f"{storage.root}: holds {len(reasons)} checkpoints and none is complete ({store.name_of(newest)}: "
            f"{reasons[newest]}); mend or move the folder, or choose another run.dir",
            shared=True,
        )
    return None


def weights_folder(source: str) -> Path:
    """The transformers folder that `run.init_from` or `model` means: the model of a run folder's best checkpoint (its
    newest, where the run looked for no best one), of one `step-…` folder, or the folder itself.

    A checkpoint's model, and one that `mbsd export` wrote, is taken only if its checksums hold; better ones that are
    damaged are named.

    Raises:
        UserError: none of these.
    """
    path = Path(source)
    if (path / "config.json").is_file():
        _refuse_damaged_model(path)
        return path
    if store.is_step(path) and path.is_dir():
        if broken := store.broken_files(path, checksums=True, below="model/"):
            raise UserError(f"{path}: not a complete checkpoint ({broken[0]}); name another one, or the run folder")
        return path / "model"
    for root in (path / "checkpoints", path):
        chosen = result(root, below="model/", say=say if this_rank() == 0 else None)
        if chosen is not None:
            return chosen / "model"
    raise UserError(
        f"{source}: neither a run folder with a complete checkpoint nor a folder with config.json; name one of them"
    )


def _refuse_damaged_model(folder: Path) -> None:
    """Raise UserError where a model's files are not those of the manifest that was written with them, if one was."""
    exported, checkpoint = folder / store.MANIFEST, folder.resolve().parent
    if exported.is_file():
        files = read_own_json(exported, "export it again").get("files", {})
        differences = ((name, difference(folder / name, facts)) for name, facts in files.items())
        wrong = next((f"{name}: {found}" for name, found in differences if found), "")
    elif store.is_step(checkpoint) and (checkpoint / store.MANIFEST).is_file():
        wrong = next(iter(store.broken_files(checkpoint, checksums=True, below=f"{folder.resolve().name}/")), "")
    else:
        return  # another program's, of which nothing was recorded
    if wrong:
        raise UserError(f"{folder}: damaged, not as it was written ({wrong}); export it again or name another model")


def _parts(root: Path) -> dict[int, store.Manifest | str]:
    """Step -> the manifest of the part that lies here, or why it is none."""
    parts: dict[int, store.Manifest | str] = {}
    for folder in store.folders(root):
        try:
            manifest = store.read_manifest(folder)
            wrong = store.wrong_sizes(folder, manifest)
            parts[store.step_of(folder)] = wrong[0] if wrong else manifest
        except store.BrokenError as error:
            parts[store.step_of(folder)] = str(error)
    return parts


def _incomplete(parts: list[store.Manifest | str]) -> str | None:
    manifests = [part for part in parts if isinstance(part, store.Manifest)]
    broken = next((part for part in parts if isinstance(part, str)), None)
    if broken is not None:
        return broken
    there = {manifest.part for manifest in manifests}
    lacking = set(range(manifests[0].parts)) - there
    if lacking:
        return f"{len(lacking)} of its {manifests[0].parts} parts are on no disk of these nodes"
    return None


def _needs(folder: Path, part: store.Manifest | str, world: World) -> str | None:
    """What this rank has to read and does not see."""
    assert isinstance(part, store.Manifest)
    same = part.world_size == world.size
    for rank in [world.rank] if same else range(part.world_size):
        name = f"{file_name(rank)}.safetensors"
        if not (folder / name).is_file():
            moved = "" if same else f" ({part.world_size} ranks wrote it, {world.size} would read it)"
            return f"rank {world.rank} does not find {name} on its node's disk{moved}"
    return None


def _share(folder: Path, storage: Storage, world: World) -> dict[str, store.FileFacts]:
    """This rank's share of the files on its disk: where no rank has moved, its own state among them."""
    if not (folder / store.MANIFEST).is_file():
        return {}  # another disk's checkpoint, of which this one has nothing
    files, index, among = store.read_manifest(folder).files, storage.members.index(world.rank), len(storage.members)
    states = sorted(name for name in files if name.startswith("state-"))
    others = [name for name in files if not name.startswith("state-")]
    mine = [name for i, name in enumerate(states) if i // 2 % among == index]  # two files a rank
    mine += [name for i, name in enumerate(others) if i % among == index]
    return {name: files[name] for name in mine}


def _corrupt(folder: Path, storage: Storage, world: World, verify: bool) -> str | None:
    """The first file of this rank's share that is not as it was written; rank 0 always looks at `run.json`."""
    try:
        share = _share(folder, storage, world) if verify else {}
        if world.is_first:
            share = {"run.json": store.read_manifest(folder).files["run.json"]} | share
    except store.BrokenError as error:
        return str(error)
    wrong = store.wrong_checksums(folder, share)
    return wrong[0] if wrong else None


def _facts(folder: Path) -> dict[str, Any] | str:
    """`run.json`, or why it cannot be read."""
    try:
        facts: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except OSError as error:
        return f"run.json: {error.strerror}"
    return facts


def _refuse_another_run(folder: Path, facts: dict[str, Any], identity: Mapping[str, Any]) -> None:
    for name, value in identity.items():
        saved = facts["identity"].get(name)
        if saved != value:
            raise UserError(
                f"{folder}: {name} was {saved!r} when it was saved and is {value!r} now; set it back, or choose "
                "another run.dir"
            )
