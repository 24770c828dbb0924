"""What a run saves and how it comes back: engine, optimizer slices, schedule, random states, loader position, model.

`step-00001000/` holds `engine/` (DeepSpeed's own files), `rank-0000.pt` (random states of each rank), `run.json` (step,
world size, catalogue, what the batches depend on) and `model/`, a transformers folder with the tokenizer that later
stages start from.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from mbsd.checkpoint import store
from mbsd.distributed import Place, on_rank_zero
from mbsd.errors import UserError
from mbsd.model.mbsd import MbsdPreTrainedModel


class CheckpointManager:
    """Saves and resumes one run.

    Args:
        folder: the run folder.
        identity: what must not change between save and resume (catalogue, seed, batch size, …), by name; JSON values.
        keep_last: checkpoints that are kept.
    """

    def __init__(self, folder: Path, place: Place, identity: dict[str, Any], keep_last: int) -> None:
        self.root, self.place, self.identity, self.keep_last = folder / "checkpoints", place, identity, keep_last

    def save(self, step: int, engine: Any, model: MbsdPreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
        """Write the checkpoint of `step` (collective); when it returns, the checkpoint is published."""
        writing = Path(on_rank_zero(lambda: str(store.open_for_writing(self.root, step))))
        engine.save_checkpoint(str(writing), tag="engine", save_latest=False)
        torch.save(_random_states(), writing / f"rank-{self.place.rank:04d}.pt")
        if self.place.is_first:
            model.save_pretrained(writing / "model")
            tokenizer.save_pretrained(writing / "model")
            state = {"step": step, "world_size": self.place.world_size, "identity": self.identity}
            (writing / "run.json").write_text(json.dumps(state, indent=1))
        dist.barrier()
        final = Path(on_rank_zero(lambda: str(store.commit(writing))))
        if self.place.is_first:
            store.prune(self.root, self.keep_last)
        return final

    def find(self) -> Path | None:
        """The checkpoint this run resumes from, the same on every rank (collective).

        Raises:
            UserError: checkpoints are there but none is complete, or the newest was written by another number of ranks
                or with other data; a run never starts from scratch by accident.
        """
        found = on_rank_zero(self._find)
        return Path(found) if found is not None else None

    def _find(self) -> str | None:
        folder = store.newest(self.root)
        if folder is None:
            broken = sorted(self.root.glob("step-*")) if self.root.is_dir() else []
            if broken:
                why = store.broken_files(broken[-1])[0]
                raise UserError(
                    f"{self.root}: holds {len(broken)} checkpoints and none is complete ({broken[-1].name}: {why}); "
                    "mend or move the folder, or choose another run.dir"
                )
            return None
        state = json.loads((folder / "run.json").read_text())
        if state["world_size"] != self.place.world_size:
            raise UserError(
                f"{folder}: was saved by {state['world_size']} ranks and this start has {self.place.world_size}; start "
                f"with {state['world_size']} ranks, or begin a new run.dir with run.init_from={folder / 'model'}"
            )
        for name, value in self.identity.items():
            if state["identity"].get(name) != value:
                raise UserError(
                    f"{folder}: {name} was {state['identity'].get(name)!r} when it was saved and is {value!r} now; set "
                    "it back, or choose another run.dir"
                )
        return str(folder)

    def load(self, folder: Path, engine: Any) -> int:
        """Put engine and random states back (collective); returns the step."""
        path, _ = engine.load_checkpoint(str(folder), tag="engine")
        assert path is not None, folder
        # Our own file, verified by the manifest: it holds NumPy's and Python's states, which weights_only refuses.
        states = torch.load(folder / f"rank-{self.place.rank:04d}.pt", weights_only=False)
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])
        torch.set_rng_state(states["torch"])
        if states["cuda"] is not None:
            torch.cuda.set_rng_state(states["cuda"])
        return int(json.loads((folder / "run.json").read_text())["step"])


def weights_folder(source: str) -> Path:
    """The transformers folder that `run.init_from` or `model` means: a run folder's newest model, or the folder itself.

    Raises:
        UserError: neither.
    """
    path = Path(source)
    if (path / "config.json").is_file():
        return path
    newest = store.newest(path / "checkpoints")
    if newest is None:
        raise UserError(
            f"{source}: neither a run folder with a complete checkpoint nor a folder with config.json; name one of them"
        )
    return newest / "model"


def _random_states() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }
