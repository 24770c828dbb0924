"""A start takes the newest complete checkpoint from the mirror where that is newer than what its disks have.

The leader of each disk downloads what a save of these ranks would have written there, into the hidden folder of an
attempt to save, compares every checksum, and publishes it by a rename when all leaders have theirs. Where another
number of ranks wrote the checkpoint, every disk gets all of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from mbsd.checkpoint import owner, store
from mbsd.checkpoint.claim import Claim
from mbsd.checkpoint.mirror import Mirror
from mbsd.checkpoint.shards import file_name
from mbsd.checkpoint.store import BrokenError, Manifest
from mbsd.errors import UserError
from mbsd.io.remote import RemoteError
from mbsd.parallel.world import gather_objects, on_rank_zero, same_on_every_rank

Offer = tuple[Manifest, dict[str, Any]]  # and its run.json


def fetch_newer(claim: Claim, than: int | None, identity: Mapping[str, Any], say: Callable[[str], None]) -> bool:
    """Publish the newest complete checkpoint of the mirror here, and the run's best one (collective).

    Args:
        than: step of the newest complete checkpoint here, of which a newer one is looked for; None: there is none.
        identity: what a checkpoint of this run has to say of itself.
        say: prints a line, on rank 0.

    Returns:
        Whether one was published.

    Raises:
        UserError: none is here, and what the mirror has cannot be seen or taken: a run never starts from scratch by
            accident; or the mirror is of another run.
    """
    mirror = claim.mirror
    assert mirror is not None
    steps, trouble = on_rank_zero(lambda: _listed(mirror))
    if trouble is not None:
        if than is None:
            raise UserError(
                f"run.mirror={mirror}: cannot be read ({trouble}), and {claim.storage.root} holds no complete "
                "checkpoint: what the run has saved is not known; mend that, or leave run.mirror out",
                shared=True,
            )
        say(f"WARNING: run.mirror={mirror}: cannot be read ({trouble}); the run goes on from its own disk")
        return False
    refused: dict[int, str] = {}
    for step in steps:
        if than is not None and step <= than and step != steps[0]:
            break
        # The newest is looked at even where it is not taken: it tells whose mirror this is.
        offer = on_rank_zero(lambda step=step: _offer(mirror, step, identity))  # type: ignore[misc]
        if than is not None and step <= than:
            break
        why = offer if isinstance(offer, str) else _download(claim, offer[0])
        if why is None and not isinstance(offer, str):
            here = f"newer than {store.name_of(than)}, the newest here" if than is not None else "none is here"
            say(f"taken from {mirror}: {store.name_of(step)} ({here})")
            folder = claim.storage.root / store.name_of(step)
            for warnings in gather_objects(store.mark_latest(folder) if claim.leads else []):
                for warning in warnings:
                    say(f"WARNING: {warning}")
            _fetch_best(claim, offer[1], steps, say)
            return True
        refused[step] = str(why)
        say(f"WARNING: {mirror}/{store.name_of(step)} is not taken: {why}")
    if refused and than is None:
        newest = max(refused)
        raise UserError(
            f"run.mirror={mirror}: holds {len(refused)} checkpoints and none can be taken ({store.name_of(newest)}: "
            f"{refused[newest]}); mend that, or choose another run.mirror to start from scratch",
            shared=True,
        )
    return False


def _fetch_best(claim: Claim, facts: Mapping[str, Any], steps: list[int], say: Callable[[str], None]) -> None:
    """The checkpoint that is the run's result so far, where its disks lack it."""
    mirror, best = claim.mirror, (facts.get("selection") or {}).get("best_step")
    assert mirror is not None
    if best is None or best == facts["step"]:
        return
    folder = claim.storage.root / store.name_of(best)
    if not any(gather_objects(claim.leads and bool(store.broken_files(folder, checksums=True)))):
        return
    why: str | None = "it is not there"
    if best in steps:
        offer = on_rank_zero(lambda: _offer(mirror, best, {}))
        why = offer if isinstance(offer, str) else _download(claim, offer[0])
    if why is not None:
        say(f"WARNING: {mirror}/{store.name_of(best)}, the best checkpoint so far, is not taken: {why}")


def _listed(mirror: Mirror) -> tuple[list[int], str | None]:
    """The steps of the mirror that have a manifest, newest first; and why it cannot be read."""
    try:
        return [step for step, complete in mirror.steps().items() if complete], None
    except RemoteError as error:
        return [], None if error.missing else str(error)  # no bucket, no checkpoint


def _offer(mirror: Mirror, step: int, identity: Mapping[str, Any]) -> Offer | str:
    """A checkpoint of the mirror, as far as its small files say; or why it is none.

    Raises:
        UserError: it is of another run.
    """
    try:
        manifest = mirror.manifest(step)
        facts = mirror.read_json(step, "run.json", manifest.files["run.json"])
    except (RemoteError, BrokenError, ValueError) as error:
        return str(error)
    except KeyError:
        return f"{store.MANIFEST}: has no run.json"
    for name, value in identity.items():
        saved = facts["identity"].get(name)
        if saved != value:
            raise UserError(
                f"run.mirror={mirror}: {name} of {store.name_of(step)} there was {saved!r} when it was saved and is "
                f"{value!r} now: each run needs a mirror of its own; set it back, or choose another run.mirror"
            )
    return manifest, facts


def _download(claim: Claim, whole: Manifest) -> str | None:
    """Publish a checkpoint on every disk; why it cannot be, else None (collective)."""
    mirror, storage, world = claim.mirror, claim.storage, claim.world
    assert mirror is not None
    part = part_of_disk(claim, whole)
    writing = store.writing_folder(storage.root, whole.step, f"{claim.token}-mirror")

    def download() -> str | None:
        try:
            mirror.fetch(whole.step, part.files, writing)
        except (RemoteError, BrokenError, OSError) as error:
            return str(error)
        return None

    reasons = _while_others_wait(download if claim.leads else lambda: None, mirror.beat)
    why = next((f"rank {rank}: {reason}" for rank, reason in enumerate(reasons) if reason is not None), None)
    with same_on_every_rank():
        if claim.leads and why is None:
            store.commit(writing, part, lambda: owner.check(storage.root, claim.token))
        elif claim.leads:
            shutil.rmtree(writing, ignore_errors=True)
    return why if world.size > 1 or why is None else why.removeprefix("rank 0: ")


def part_of_disk(claim: Claim, whole: Manifest) -> Manifest:
    """What of a checkpoint belongs on this rank's disk."""
    storage = claim.storage
    if storage.shared or whole.world_size != claim.world.size:
        return Manifest(whole.step, whole.world_size, 0, 1, whole.files)
    states = {f"{file_name(rank)}.{kind}": rank for rank in range(whole.world_size) for kind in ("json", "safetensors")}
    # What is no rank's state, rank 0 had written.
    files = {name: facts for name, facts in whole.files.items() if states.get(name, 0) in storage.members}
    index = storage.leaders.index(storage.leader)
    return Manifest(whole.step, whole.world_size, index, len(storage.leaders), files)


def _while_others_wait(work: Callable[[], str | None], beat: Callable[[], None]) -> list[str | None]:
    """What `work` returned on each rank (collective); `beat` is called every second until all are done."""
    with ThreadPoolExecutor(1) as pool:
        future: Future[str | None] = pool.submit(work)
        while not all(gather_objects(bool(wait([future], 1.0).done))):
            beat()
        return gather_objects(future.result())
