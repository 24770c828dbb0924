"""Which ranks see the same checkpoint folder: found by a probe file, never assumed."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from mbsd.errors import UserError
from mbsd.parallel.world import World, gather_objects, on_rank_zero, same_on_every_rank

PATIENCE = 2.0  # seconds in which a file written on one node must be seen on another


@dataclass(frozen=True)
class Storage:
    """The checkpoint folder as this rank sees it."""

    root: Path
    leader: int
    """The lowest rank that sees the same folder; it publishes."""
    members: tuple[int, ...]
    """The ranks that see the same folder."""
    leaders: tuple[int, ...]
    """The leaders of all folders; rank 0 is one."""

    @property
    def shared(self) -> bool:
        """Every rank sees one and the same folder."""
        return len(self.leaders) == 1

    def __str__(self) -> str:
        """As the start-up block prints it."""
        disks = "one folder for all ranks" if self.shared else f"{len(self.leaders)} disks, each with its ranks' shards"
        return f"{self.root} ({disks})"


def probe(root: Path, world: World, *, node_local: bool) -> Storage:
    """Find out who shares `root` (collective); it is made where it is missing.

    Args:
        node_local: it may be a different folder on each node.

    Raises:
        UserError: it cannot be written, or is not shared and node_local is False.
    """
    token = on_rank_zero(lambda: secrets.token_hex(4))
    mine = root / f".probe-{token}-{world.rank}"
    with same_on_every_rank():
        try:
            root.mkdir(parents=True, exist_ok=True)
            mine.write_text(token, encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{root}: cannot be written ({error.strerror}); checkpoints have to go there: mend it, or choose "
                "another run.dir"
            ) from error
    dist.barrier()
    leader = _leader(root, token, world.rank, patience=0.0 if node_local else PATIENCE)
    leader_of = gather_objects(leader)
    mine.unlink()
    leaders = tuple(sorted(set(leader_of)))
    if len(leaders) > 1 and not node_local:
        raise UserError(
            f"{root}: rank {leaders[1]} does not see what rank 0 writes there; put run.dir on a file system that all "
            "nodes share, or set run.node_local_checkpoints to a folder on each node's own disk",
            shared=True,
        )
    members = tuple(rank for rank, other in enumerate(leader_of) if other == leader)
    return Storage(root, leader, members, leaders)


def _leader(root: Path, token: str, rank: int, patience: float) -> int:
    """The lowest rank whose probe is here; a network file system may take a moment to show it."""
    deadline = time.monotonic() + patience
    while True:
        seen = next(other for other in range(rank + 1) if (root / f".probe-{token}-{other}").exists())
        if seen == 0 or time.monotonic() > deadline:
            return seen
        time.sleep(0.1)
