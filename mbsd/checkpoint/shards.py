"""Each rank's share of a checkpoint: `state-0000.safetensors` with the numbers, `state-0000.json` with what they are.

The JSON holds the map of `layout.py`, the optimizer's scalars and the rank's random states; rank 0's file also holds
the frozen parameters and buffers. Nothing is pickled, so nothing that is read back can run.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

from mbsd.checkpoint.flat_layout import Flat, Layout, Piece
from mbsd.errors import UserError

MASTER, FROZEN = "master", "frozen/"
AVERAGE = "average"  # of the weights over the steps (run.ema): beside the moments in the optimizer's state


def file_name(rank: int) -> str:
    """Without its suffix."""
    return f"state-{rank:04d}"


def tensors_of(engine: Any, layout: Layout, rank: int) -> dict[str, Tensor]:
    """What this rank saves: masters and moments, on rank 0 what no optimizer holds too."""
    tensors = {}
    for flat in layout.flats:
        if flat.mine:
            tensors[f"{flat.key}/{MASTER}"] = flat.master.detach()
            for name, value in _state(engine, flat).items():
                if torch.is_tensor(value) and value.numel() == flat.master.numel() and value.dim() > 0:
                    tensors[f"{flat.key}/{name}"] = value
    if rank == 0:
        tensors |= {f"{FROZEN}{name}": tensor for name, tensor in _frozen(engine, layout).items()}
    return tensors


def scalars_of(engine: Any, layout: Layout) -> dict[str, dict[str, Any]]:
    """Flat -> the map of its pieces, and the optimizer's single numbers for it (its count of steps)."""
    described = {}
    for flat in layout.flats:
        if flat.mine:
            numbers = {}
            for name, value in _state(engine, flat).items():
                if torch.is_tensor(value) and value.dim() == 0:
                    numbers[name] = [str(value.dtype).removeprefix("torch."), value.item()]
                elif not torch.is_tensor(value):
                    numbers[name] = ["number", value]
            described[flat.key] = {"pieces": [list(piece) for piece in flat.pieces], "numbers": numbers}
    return described


class Shards:
    """The numbers of a saved checkpoint, to be read element by element.

    Args:
        folder: of the checkpoint.
        ranks: whose files are read: this rank's own where nothing has moved, else all.
    """

    def __init__(self, folder: Path, ranks: list[int]) -> None:
        self.folder = folder
        self._described = {
            rank: json.loads((folder / f"{file_name(rank)}.json").read_text(encoding="utf-8"))["flats"]
            for rank in ranks
        }
        # Parameter -> (rank, flat, first element of the piece, where it starts in the flat, elements)
        self._where: dict[str, list[tuple[int, str, int, int, int]]] = defaultdict(list)
        for rank, flats in self._described.items():
            for key, described in flats.items():
                for name, first, start, length in described["pieces"]:
                    self._where[name].append((rank, key, first, start, length))

    def load(self, engine: Any, layout: Layout) -> None:
        """Fill masters and moments of this rank's flats.

        Raises:
            UserError: an element is in none of the files.
        """
        files: dict[int, Any] = {}
        with contextlib.ExitStack() as opened:
            for rank in self._described:
                path = self.folder / f"{file_name(rank)}.safetensors"
                files[rank] = opened.enter_context(safe_open(path, framework="pt", device="cpu"))
            for flat in layout.flats:
                self._load_flat(engine, flat, files)

    def weights(self, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
        """The float32 weights of these parameters, which `model/` has rounded, put together from all ranks' pieces.

        They are the averages of a run that keeps them (run.ema), else the masters.

        Raises:
            UserError: an element is in none of the files.
        """
        whole = {}
        with contextlib.ExitStack() as opened:
            files = {
                rank: opened.enter_context(safe_open(self.folder / f"{file_name(rank)}.safetensors", framework="pt"))
                for rank in self._described
            }
            names = {rank: set(file.keys()) for rank, file in files.items()}
            for name, shape in shapes.items():
                line = torch.empty(math.prod(shape), dtype=torch.float32)
                for rank, key, first, start, length in self._where[name]:
                    kind = AVERAGE if f"{key}/{AVERAGE}" in names[rank] else MASTER
                    line.narrow(0, first, length).copy_(_slice(files[rank], f"{key}/{kind}", start, length))
                if sum(length for *_, length in self._where[name]) < line.numel():
                    raise UserError(f"{self.folder}: lacks elements of {name}; name another checkpoint")
                whole[name] = line.view(shape)
        return whole

    def _load_flat(self, engine: Any, flat: Flat, files: dict[int, Any]) -> None:
        found = [(piece, *source) for piece in flat.pieces for source in self._sources(piece)]
        covered = sum(length for *_, length in found)
        if covered != sum(piece.length for piece in flat.pieces):
            raise UserError(
                f"{self.folder}: lacks elements of {flat.pieces[0].name}: its files are of another model, or of "
                "another number of ranks than they record"
            )
        if not found:  # this rank owns nothing but padding
            found_key = next(((r, k) for r, flats in self._described.items() for k in flats if k == flat.key), None)
            if found_key is not None:
                self._make_state(engine, flat, *found_key, files)
            return
        self._make_state(engine, flat, found[0][1], found[0][2], files)
        state = _state(engine, flat)
        targets = {MASTER: flat.master} | {name: value for name, value in state.items() if _is_moment(value, flat)}
        for name, target in targets.items():
            line = target.detach().view(-1)
            for _, rank, key, into, start, length in found:
                line.narrow(0, into, length).copy_(_slice(files[rank], f"{key}/{name}", start, length))

    def _sources(self, piece: Piece) -> Iterator[tuple[int, str, int, int, int]]:
        """(rank, flat, where it goes, where it lies, elements) of all that overlaps with `piece`."""
        for rank, key, first, start, length in self._where[piece.name]:
            low, high = max(first, piece.first), min(first + length, piece.first + piece.length)
            if low < high:
                yield rank, key, piece.start + low - piece.first, start + low - first, high - low

    def _make_state(self, engine: Any, flat: Flat, rank: int, key: str, files: dict[int, Any]) -> None:
        """Give the optimizer the state it had, moments still 0: a fresh one makes it in its first step."""
        prefix = f"{key}/"
        state: dict[str, Any] = {
            name.removeprefix(prefix): torch.zeros_like(flat.master, requires_grad=False)
            for name in list(files[rank].keys())
            if name.startswith(prefix) and name != f"{prefix}{MASTER}"
        }
        for name, (kind, value) in self._described[rank][key]["numbers"].items():
            state[name] = value if kind == "number" else torch.tensor(value, dtype=getattr(torch, kind))
        if state:
            engine.optimizer.state[flat.master] = state


def load_frozen(folder: Path, engine: Any, layout: Layout, *, here: bool) -> None:
    """Frozen parameters and buffers from rank 0's file, read where `here`, to every rank (collective)."""
    frozen = _frozen(engine, layout)
    if here:
        with safe_open(folder / f"{file_name(0)}.safetensors", framework="pt", device="cpu") as file:
            for name, tensor in frozen.items():
                tensor.copy_(file.get_tensor(f"{FROZEN}{name}"))
    for tensor in frozen.values():
        dist.broadcast(tensor, src=0)


def _frozen(engine: Any, layout: Layout) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in engine.module.state_dict().items() if name not in layout.shapes}


def _state(engine: Any, flat: Flat) -> dict[str, Any]:
    state: dict[str, Any] = engine.optimizer.state.get(flat.master, {})
    return state


def _is_moment(value: Any, flat: Flat) -> bool:
    return torch.is_tensor(value) and value.dim() > 0 and value.numel() == flat.master.numel()


def _slice(file: Any, name: str, start: int, length: int) -> Tensor:
    """Elements of a saved tensor, which a tensor of several dimensions is read whole for."""
    lazy = file.get_slice(name)
    if len(lazy.get_shape()) == 1:
        part: Tensor = lazy[start : start + length]
        return part
    whole: Tensor = file.get_tensor(name)
    return whole.reshape(-1)[start : start + length]
