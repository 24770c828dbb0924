"""What a run saves and how it comes back: engine, optimizer slices, schedule, random states, loader position, model.

`step-00001000/` holds
- `state-0000.safetensors`, `state-0000.json`, … of each rank (`shards.py`): 32-bit weights, moments, random states;
- `run.json`: step, number of ranks, what must not change, schedule, loss scale, loader state, versions, and which step
  was the best so far; beside it the run's resolved settings;
- `model/`, a transformers folder with the tokenizer that later stages start from;
- `manifest.json`: the size and checksum of all that (`store.py`).
All of it is JSON and safetensors: reading a checkpoint runs nothing that is in it.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore, TCPStore
from transformers import PreTrainedTokenizerBase

from mbsd.checkpoint import owner, store, writer
from mbsd.checkpoint.claim import Claim
from mbsd.checkpoint.flat_layout import Layout, read_layout, write_back
from mbsd.checkpoint.host_buffer import HostBuffer
from mbsd.checkpoint.mirroring import Mirroring
from mbsd.checkpoint.resume import Found
from mbsd.checkpoint.shards import Shards, file_name, load_frozen, scalars_of, tensors_of
from mbsd.checkpoint.state import draw_anew, engine_state, load_engine_state, load_random_states, random_states
from mbsd.checkpoint.store import Keep
from mbsd.config.run_files import LAST_SAVED
from mbsd.errors import UserError
from mbsd.io.files import replace_text
from mbsd.model.backbone import MbsdPreTrainedModel
from mbsd.parallel.world import World, on_rank_zero, same_on_every_rank

MAX_FAILURES = 3  # saves in a row
MODEL = "model"
Tensors = dict[str, dict[str, Tensor]]  # file name -> what goes into it


@dataclass(frozen=True)
class SavedParts:
    """What goes into every checkpoint beside the training state.

    Attributes:
        model: what `model/` is written from.
        tokenizer: beside it.
        facts: of `run.json`, the same at every save: `identity` and whatever else is to be recorded.
        texts: file name -> text.
        as_saved: the model has the weights of `model/` inside (collective).
    """

    model: MbsdPreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    facts: Mapping[str, Any]
    texts: Mapping[str, str]
    as_saved: Callable[[], AbstractContextManager[None]] = nullcontext


class CheckpointManager:
    """Saves a run and puts it back. Every method is collective, unless its docstring says otherwise.

    Args:
        claim: the folders; this start must own them.
        engine: DeepSpeed's.
        parts: what is saved beside the engine's state.
        keep: which checkpoints stay.
        say: prints a line; called on rank 0, also from the writing thread.
    """

    def __init__(
        self, claim: Claim, engine: Any, parts: SavedParts, keep: Keep, say: Callable[[str], None] = print
    ) -> None:
        self.folder, self.world, self.storage, self.engine = claim.folder, claim.world, claim.storage, engine
        self._claim = claim
        self._parts, self._token, self._keep, self._say = parts, claim.token, keep, say
        self._layout: Layout = read_layout(engine)
        self._buffers: dict[str, HostBuffer] = {}
        self._preparing: threading.Thread | None = None
        self._mailbox = _mailbox(self.world)
        self._writing: writer.Writing | None = None
        self._job: writer.Job | None = None  # of the last save
        copies = claim.mirror is not None and claim.leads
        self._mirroring = Mirroring(claim, self._mailbox, keep, say) if copies else None
        self._attempt, self._saves, self._failures = "", 0, 0
        self._constant = self._constant_files() if self.world.is_first else {}

    def save(self, state: Mapping[str, Any]) -> None:
        """Copy the state of now to host memory and write it behind what comes next; waits for a save in flight.

        Args:
            state: `step`, `loader` and `selection`, which names the best step (that is never pruned) or is None.

        Raises:
            UserError: as of `check`.
        """
        self._settle(wait=True)
        files = dict(self._constant)
        for name, image in self._snapshot().items():
            files[name] = image.view()
        described = {
            "flats": scalars_of(self.engine, self._layout),
            "random": random_states(self.world.device),
        }
        files[f"{file_name(self.world.rank)}.json"] = _json(described)
        if self.world.is_first:
            files["run.json"] = _json(
                {
                    **state,
                    "world_size": self.world.size,
                    "parameters": self._layout.shapes,
                    **engine_state(self.engine),
                    **self._parts.facts,
                }
            )
        if self.world.device.type == "cuda":
            torch.cuda.current_stream(self.world.device).synchronize()
        self._saves += 1
        self._attempt = f"{self._token}-{self._saves}"
        self._job = writer.Job(
            root=self.storage.root,
            step=state["step"],
            attempt=self._attempt,
            rank=self.world.rank,
            world_size=self.world.size,
            leader=self.storage.leader,
            members=self.storage.members,
            leaders=self.storage.leaders,
            token=self._token,
            keep_last=self._keep.last,
            keep_every=self._keep.every,
            protected=_best_step(state),
            files=tuple(files.items()),
            mirroring=self._mirroring,
        )
        self._writing = writer.Writing(self._job, self._mailbox, self._report)

    def check(self) -> None:
        """Take note of a save that has ended; its result has been printed by then.

        Raises:
            UserError: a later start has taken the run over, or the last three saves have failed.
        """
        self._settle(wait=False)
        if not self._buffers and self._preparing is None:
            self.prepare()

    def prepare(self) -> None:
        """Begin to lay out the host memory that saves copy into, behind the steps; not collective.

        Called when the optimizer has made a step and so has its state; the first save would else wait for it.
        """
        wanted = self._wanted()
        self._preparing = threading.Thread(target=self._lay_out, args=(wanted,), name="checkpoint-memory", daemon=True)
        self._preparing.start()

    def wait(self) -> None:
        """Return when the last save is durable.

        Raises:
            UserError: it failed, or as of `check`.
        """
        self._settle(wait=True)
        if self._failures:
            raise UserError(
                f"{self.storage.root}: the last checkpoint could not be written (see above); the run is not finished: "
                "mend that and start it again: it resumes from the newest complete one",
                shared=True,
            )

    @property
    def mirror_failures(self) -> int | None:
        """Checkpoints of this start that could not be copied to the mirror, of rank 0; None: it has none."""
        return self._mirroring.failures if self._mirroring is not None else None

    def mirror_again(self, found: Found) -> None:
        """Copy the checkpoint that the run resumes from to the mirror, if it is the run's own and is not there yet."""
        if self._mirroring is not None and found.folder.parent == self.storage.root:
            self._mirroring.offer(found.facts["step"], _best_step(found.facts), new=False)

    def wait_for_mirror(self, bound: float, beat: Callable[[], None]) -> None:
        """Return when everything is copied, or after `bound` seconds; then what stayed for the copies is removed here.

        Args:
            beat: called every second.
        """
        mirroring = self._mirroring
        if self._claim.mirror is None:
            return
        deadline = time.monotonic() + bound
        while not on_rank_zero(lambda: mirroring is None or mirroring.wait(1.0) or time.monotonic() > deadline):
            beat()
        if self.world.is_first and mirroring is not None:
            mirroring.end(bound)
        if (job := self._job) is not None and self._claim.leads and not self._failures:
            with suppress(UserError):  # a later start may be reading what would be removed
                owner.check(job.root, self._token)
                store.prune(job.root, job.step, job.keep_last, job.keep_every, job.protected)
        dist.barrier()  # no rank takes the key-value store away before all have ended

    def load(self, found: Found) -> dict[str, Any]:
        """Put engine and random states back from a checkpoint that was found and verified; returns its `run.json`.

        Raises:
            UserError: it is of another model.
        """
        facts = found.facts
        same_world = facts["world_size"] == self.world.size
        with same_on_every_rank():
            self._refuse_other_parameters(found)
            own = found.folder / f"{file_name(self.world.rank)}.json"
            mine = json.loads(own.read_text(encoding="utf-8")) if same_world and own.is_file() else None
            described = scalars_of(self.engine, self._layout)
            unmoved = (
                mine is not None
                and self._layout.sliced
                and {key: flat["pieces"] for key, flat in mine["flats"].items()}
                == {key: flat["pieces"] for key, flat in described.items()}
            )
            ranks = [self.world.rank] if unmoved else list(range(facts["world_size"]))
            missing = [r for r in ranks if not (found.folder / f"{file_name(r)}.safetensors").is_file()]
            if missing:
                raise UserError(
                    f"{found.folder}: rank {self.world.rank} needs {file_name(missing[0])}.safetensors, which another "
                    "node's disk holds; copy it here, or start the ranks on the nodes that wrote it"
                )
            Shards(found.folder, ranks).load(self.engine, self._layout)
        write_back(self.engine, self._layout)
        load_frozen(found.folder, self.engine, self._layout, here=self.world.is_first)
        load_engine_state(self.engine, facts)
        if same_world and mine is not None:
            load_random_states(mine["random"], self.world.device)
        else:
            draw_anew(facts["step"], self.world.rank)
        return facts

    def _refuse_other_parameters(self, found: Found) -> None:
        saved, mine = found.facts["parameters"], self._layout.shapes
        for name in sorted(saved.keys() | mine.keys()):
            if saved.get(name) != mine.get(name):
                raise UserError(
                    f"{found.folder}: {name} is {saved.get(name, 'not there')} in it and {mine.get(name, 'not there')} "
                    "in this model; set the model back to what it was, or choose another run.dir"
                )

    def _snapshot(self) -> dict[str, HostBuffer]:
        """File name -> its image, with the tensors of now copied in (collective)."""
        if self._preparing is not None:
            self._preparing.join()
        self._lay_out(self._wanted())
        names = self._fill(self._state())
        with self._parts.as_saved():
            names += self._fill(self._model())
        return {name: self._buffers[name] for name in names}

    def _fill(self, wanted: Tensors) -> list[str]:
        for name, tensors in wanted.items():
            self._buffers[name].fill(tensors)
        return list(wanted)

    def _wanted(self) -> Tensors:
        return self._state() | self._model()

    def _state(self) -> Tensors:
        return {f"{file_name(self.world.rank)}.safetensors": tensors_of(self.engine, self._layout, self.world.rank)}

    def _model(self) -> Tensors:
        if not self.world.is_first:
            return {}
        tied = getattr(self._parts.model, "all_tied_weights_keys", {})
        weights = {name: value for name, value in self._parts.model.state_dict().items() if name not in tied}
        return {f"{MODEL}/model.safetensors": weights}

    def _lay_out(self, wanted: Tensors) -> None:
        for name, tensors in wanted.items():
            if name not in self._buffers or not self._buffers[name].fits(tensors):
                self._buffers[name] = HostBuffer(tensors, {"format": "pt"}, pinned=self.world.device.type == "cuda")

    def _constant_files(self) -> dict[str, memoryview]:
        """What does not change while the process lives: the model's config, the tokenizer, the run's settings."""
        files = {name: memoryview(text.encode()) for name, text in self._parts.texts.items()}
        with tempfile.TemporaryDirectory() as folder:
            # As `save_pretrained` does, without the weights.
            self._parts.model.config.dtype = str(self._parts.model.dtype).removeprefix("torch.")
            self._parts.model.config.architectures = [type(self._parts.model).__name__]
            self._parts.model.config.save_pretrained(folder)
            self._parts.tokenizer.save_pretrained(folder)
            for path in sorted(Path(folder).rglob("*")):
                if path.is_file():
                    files[f"{MODEL}/{path.relative_to(folder)}"] = memoryview(path.read_bytes())
        return files

    def _settle(self, *, wait: bool) -> None:
        writing = self._writing
        if writing is None:
            return

        def ended() -> writer.Outcome | None:
            if wait:
                writing.join()
            return None if writing.is_alive() else writing.outcome

        outcome = on_rank_zero(ended)
        if outcome is None and not wait:
            return
        writing.join()
        dist.barrier()  # no rank leaves, and rank 0's key-value store with it, while another still asks
        self._writing = None
        if outcome is None:
            raise RuntimeError("rank 0's checkpoint writer died; its traceback is above")
        if self.world.is_first:
            writer.forget(self._mailbox, self._attempt, self.world.size)
        if outcome.fenced is not None:
            raise owner.FencedError(outcome.fenced, shared=True)
        self._failures = self._failures + 1 if outcome.errors else 0
        if self._failures >= MAX_FAILURES:
            raise UserError(
                f"{self.storage.root}: {MAX_FAILURES} checkpoints in a row could not be written, the last because of "
                f"{outcome.errors[0]}; the run stops: mend that and start it again",
                shared=True,
            )

    def _report(self, outcome: writer.Outcome) -> None:
        """Say how a save ended, from its own thread as soon as it has."""
        if not self.world.is_first or outcome.fenced is not None:
            return
        if outcome.errors:
            self._say(
                f"WARNING: checkpoint {outcome.folder.name} could not be written ({outcome.errors[0]}); failure "
                f"{self._failures + 1} of {MAX_FAILURES}, training continues, the last complete one stays"
            )
            return
        self._say(f"saved {outcome.folder}")
        try:
            replace_text(self.folder / LAST_SAVED, f"{outcome.folder}\n")
        except OSError as error:
            self._say(f"WARNING: {self.folder / LAST_SAVED} could not be written ({error.strerror})")
        for warning in outcome.warnings:
            self._say(f"WARNING: {warning}")


def _best_step(state: Mapping[str, Any]) -> tuple[int, ...]:
    return (selection["best_step"],) if (selection := state["selection"]) is not None else ()


def _json(tree: Any) -> memoryview:
    return memoryview(json.dumps(tree).encode())


def _mailbox(world: World) -> Any:
    """A key-value store of its own for the writers."""
    if world.size == 1:
        return HashStore()
    host = os.environ["MASTER_ADDR"]
    served = TCPStore(host, 0, None, True, wait_for_workers=False) if world.is_first else None
    port = on_rank_zero(lambda: served.port if served is not None else 0)
    return served or TCPStore(host, port, None, False, wait_for_workers=False)
