"""What a start holds of its run once it has taken it over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mbsd.checkpoint.mirror import Mirror
from mbsd.checkpoint.storage import Storage
from mbsd.parallel.world import World


@dataclass(frozen=True)
class Claim:
    """A run's folder and checkpoints, owned by this start of it.

    Attributes:
        folder: the run folder.
        world: of this process.
        storage: where checkpoints go.
        token: of the owner (`owner.claim`).
        mirror: where they are copied to; None: nowhere.
    """

    folder: Path
    world: World
    storage: Storage
    token: str
    mirror: Mirror | None = None

    @property
    def leads(self) -> bool:
        """Whether this rank publishes what lies on its disk."""
        return self.world.rank == self.storage.leader
