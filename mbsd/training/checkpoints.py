"""What a run saves and how it resumes: the one owner of its training state on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mbsd.catalog.several import Catalogs, Items
from mbsd.checkpoint.claim import Claim
from mbsd.checkpoint.manager import CheckpointManager, SavedParts
from mbsd.checkpoint.mirror import Mirror
from mbsd.checkpoint.resume import Found, find_elsewhere, take_over
from mbsd.checkpoint.storage import Storage, probe
from mbsd.checkpoint.store import Keep
from mbsd.config.catalogs import PERIOD, slots_of
from mbsd.config.data import DataConfig
from mbsd.config.parse import to_yaml
from mbsd.data.inputs import Inputs
from mbsd.data.spec import Needs
from mbsd.data.text import words_digest
from mbsd.errors import UserError
from mbsd.io.console import say
from mbsd.model.backbone import MbsdPreTrainedModel
from mbsd.model.config import BackboneConfig
from mbsd.parallel.world import same_on_every_rank
from mbsd.training.run import Run, Schedule
from mbsd.training.run_folder import packages
from mbsd.training.state import TrainState

SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "image_size", "image_cls")


@dataclass(frozen=True)
class RunParts:
    """What of a run goes into its checkpoints and does not change while it lives."""

    model: MbsdPreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, Any]
    schedule: Schedule

    @classmethod
    def of(cls, run: Run, inputs: Inputs, needs: Needs, schedule: Schedule, model: Any, keys: str | None) -> RunParts:
        """The parts of a run; `identity` is what must be the same on resume.

        Args:
            keys: digest of the items' identity keys; None where the stage reads none.
        """
        identity = {
            **_mixture(run.config.data, inputs.catalog),
            "catalogue": inputs.catalog.fingerprint,
            "table": inputs.table.fingerprint if inputs.table is not None else None,
            "samples": schedule.num_samples,
            "run.seed": run.config.run.seed,
            "train_batch_size": schedule.batches.identity,
            "model": _shape(model.config),
            "views": list(needs.views),
            "keys": keys,
            "vocabulary": words_digest(inputs.tokenizer),
            "optimizer": schedule.deepspeed["optimizer"]["type"],
        }
        return cls(model, inputs.tokenizer, identity, schedule)


@dataclass(frozen=True)
class Places:
    """Where a run's checkpoints go: to its disks, and to a mirror if it has one."""

    storage: Storage
    mirror: Mirror | None

    @classmethod
    def of(cls, run: Run) -> Places:
        """The places of a run, found out on all ranks (collective).

        Raises:
            UserError: a folder cannot be written, or no library opens the mirror's URL.
        """
        config, root = run.config.run, checkpoint_root(run)
        with same_on_every_rank():
            mirror = Mirror(config.mirror, run.watchdog.beat) if config.mirror is not None else None
            local = mirror.folder.local if mirror is not None else None
            if local is not None and local.resolve() == root.resolve():
                raise UserError(f"run.mirror={mirror}: is where the checkpoints are; choose a folder on another disk")
        storage = probe(root, run.world, node_local=config.node_local_checkpoints is not None)
        return cls(storage, mirror)

    def __str__(self) -> str:
        """As the start-up block prints it."""
        return f"{self.storage}" + (f", copied to {self.mirror}" if self.mirror is not None else "")


class Checkpoints:
    """Saves the training state of a run and puts it back; collective.

    Args:
        places: where checkpoints go.
        parts: what else goes into them.
        state: what is saved and restored.

    Attributes:
        rate_before: the learning rate that the restored checkpoint was saved with, for its next step.
    """

    def __init__(self, run: Run, engine: Any, places: Places, parts: RunParts, state: TrainState) -> None:
        self.run, self.engine, self.places = run, engine, places
        self.parts, self.state = parts, state
        self.rate_before = 0.0
        self._manager: CheckpointManager | None = None

    def restore(self) -> str:
        """Take the run over, find its newest complete checkpoint and resume from it.

        Without one: from the checkpoint that run.resume names; without that the state stays as it is.

        Returns:
            Where the run starts from, in words.

        Raises:
            UserError: a later start owns the run, its checkpoints are of another run, or none of them is complete.
        """
        run, identity = self.run, self.parts.identity
        token, found = take_over(run.folder, self.places.storage, run.world, identity, run.print, self.places.mirror)
        own = found is not None
        if found is not None:
            self._refuse_past_the_end(found)
        if found is None and run.config.run.resume != "auto":
            found = find_elsewhere(run.config.run.resume, run.world, identity, run.print)
        self._manager = self._open(token)
        if found is None:
            taken = f": {self.parts.model.taken_over}" if self.parts.model.taken_over is not None else ""
            return f"weights of {run.config.run.init_from or run.config.model.backbone or 'scratch'}{taken}"
        facts = self._manager.load(found)
        self.rate_before = float(facts["lr"][0])
        self.state.average.restored()
        with same_on_every_rank():
            self.state.load_state_dict(facts, own=own)
        self._manager.mirror_again(found)
        return self._origin(found)

    def save(self) -> None:
        """Copy the state of now to host memory and write it behind what comes next.

        Raises:
            UserError: as of `check`.
        """
        self._opened.save(self.state.state_dict())

    def check(self) -> None:
        """Take note of a save that has ended.

        Raises:
            UserError: a later start has taken the run over, or the last saves have failed.
        """
        self._opened.check()

    def wait(self) -> None:
        """Return when the last save is durable.

        Raises:
            UserError: it failed, or as of `check`.
        """
        self.run.watchdog.beat("saving the last checkpoint")
        self._opened.wait()

    def wait_for_mirror(self) -> None:
        """Return when the mirror has the last checkpoint too, at the latest after run.mirror_wait seconds."""
        self.run.watchdog.beat("copying the last checkpoint to the mirror")
        self._opened.wait_for_mirror(self.run.config.run.mirror_wait, self.run.watchdog.beat)

    @property
    def mirror_failures(self) -> int | None:
        """Checkpoints of this start that could not be copied to the mirror; None: the run has no mirror. Of rank 0."""
        return self._opened.mirror_failures

    @property
    def _opened(self) -> CheckpointManager:
        assert self._manager is not None, "restore comes first: it takes the run over"
        return self._manager

    def _open(self, token: str) -> CheckpointManager:
        run, parts = self.run, self.parts
        texts = {
            "config.yaml": to_yaml(run.config),
            "ds_config.json": json.dumps(parts.schedule.deepspeed, indent=1) + "\n",
        }
        facts = {"identity": parts.identity, "packages": packages()}
        return CheckpointManager(
            Claim(run.folder, run.world, self.places.storage, token, self.places.mirror),
            self.engine,
            SavedParts(parts.model, parts.tokenizer, facts, texts, self.state.average.applied),
            Keep(run.config.run.keep_last, run.config.run.keep_every),
            say,
        )

    def _refuse_past_the_end(self, found: Found) -> None:
        """What the mirror had is known only now."""
        step, total = found.facts["step"], self.state.total_steps
        if step > total:
            raise UserError(
                f"{found.folder}: is of step {step}, the run has {total}: nothing left to train; ask for more steps",
                shared=True,
            )

    def _origin(self, found: Found) -> str:
        other = found.facts["world_size"] != self.run.world.size
        return f"resuming {found.folder}" + (f" of {found.facts['world_size']} ranks" if other else "")


def _mixture(data: DataConfig, catalog: Items) -> dict[str, list[str]]:
    """Of several catalogues, which they are and how many of the samples are of each, for a message too."""
    if not isinstance(catalog, Catalogs) or data.catalogs is None:
        return {}
    each = zip(catalog.members, slots_of(data.catalogs), strict=True)
    return {"data.catalogs": [f"{one.fingerprint[:12]}: {slots} of {PERIOD} samples" for one, slots in each]}


def checkpoint_root(run: Run) -> Path:
    """Where this rank's checkpoint files go: the run folder, or the node's own disk."""
    return Path(run.config.run.node_local_checkpoints or run.folder / "checkpoints")


def _shape(model: BackboneConfig) -> dict[str, Any]:
    shape = {name: getattr(model, name) for name in SHAPE} | {"patchify_strides": list(model.patchify_strides)}
    if model.mpm_target != "pixels":  # checkpoints of before have no such line
        shape["mpm_target"] = model.mpm_target
    if model.cross_modal:
        shape["cross_modal"] = True
    return shape if model.architecture == "mbsd" else shape | {"architecture": model.architecture}
