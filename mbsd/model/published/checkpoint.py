"""A published checkpoint: which weights it holds, and what they are called here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from mbsd.errors import UserError

OURS = "mbsd"  # how the model types of our own checkpoints begin


@dataclass(frozen=True)
class Weight:
    """One weight of ours: its value, and the name of the published one that it is or was computed from."""

    source: str
    value: Tensor


@dataclass(frozen=True)
class Published:
    """A checkpoint in our names.

    Attributes:
        kind: BERT, RoBERTa, ViT, …; for messages.
        setting: `model.backbone=…` or `model.image_weights=…`, which named it.
        sizes: settings of BackboneConfig that it brings.
        backbone: weights by their names in a backbone, which has them all.
        head: weights by their names in a head; one of another kind, or of other sizes, has none of them. A projection
            of vectors is one of [CLS] itself (`representation: cls`).
        held: names of all weights of the checkpoint.
        notes: what was done to weights, in words.
    """

    kind: str
    setting: str
    sizes: Mapping[str, Any]
    backbone: Mapping[str, Weight]
    head: Mapping[str, Weight] = field(default_factory=dict)
    held: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


class Loaded:
    """A checkpoint in a transformers model: `weight` gives what it holds, and never what transformers drew at random.

    Attributes:
        model: transformers'.
        held: the names of the checkpoint's weights; those that the model has no place for among them.
    """

    def __init__(self, model: Any, missing: Collection[str], unexpected: Collection[str]) -> None:
        self.model = model
        self._state: dict[str, Tensor] = model.state_dict()
        self._missing = frozenset(missing)
        own = {name for name, _ in model.named_parameters()} - self._missing
        self.held = frozenset(own | {name for name in unexpected if not name.endswith("position_ids")})

    def weight(self, name: str, change: Callable[[Tensor], Tensor] | None = None) -> Weight | None:
        """The weight of this name; None where the checkpoint does not hold it.

        Args:
            change: of its value.
        """
        if name in self._missing or name not in self._state:
            return None
        value = self._state[name]
        return Weight(name, value if change is None else change(value))

    def weights(self, names: Mapping[str, str]) -> dict[str, Weight]:
        """Of our names and theirs: our name -> weight, of those that the checkpoint holds."""
        found = {ours: self.weight(theirs) for ours, theirs in names.items()}
        return {ours: weight for ours, weight in found.items() if weight is not None}

    def all_of(self, names: Mapping[str, str]) -> dict[str, Weight]:
        """As `weights`, where the checkpoint holds all of them; else none."""
        found = self.weights(names)
        return found if len(found) == len(names) else {}


def advice(kind: str) -> str:
    """What to name instead."""
    return (
        f"give a {kind}'s folder with config.json and model.safetensors or pytorch_model.bin, or a hub name that this "
        "machine can reach"
    )


def config_of(path: str, kind: str, setting: str) -> dict[str, Any]:
    """The config.json of a folder or hub name.

    Raises:
        UserError: none there, or one of a checkpoint that mbsd wrote.
    """
    try:
        found: dict[str, Any] = PretrainedConfig.get_config_dict(path)[0]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{setting}: no {kind} checkpoint could be loaded ({_reason(error)}); {advice(kind)}"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{setting}: its config.json holds no settings; {advice(kind)}")
    if str(found.get("model_type", "")).startswith(OURS):
        raise UserError(f"{setting}: is a checkpoint that mbsd wrote; start from it with run.init_from")
    return found


def refuse_type(config: Mapping[str, Any], known: Collection[str], kind: str, setting: str) -> None:
    """Raise UserError where a config.json names another type of model; old ones name none."""
    found = config.get("model_type")
    if found is not None and found not in known:
        raise UserError(f"{setting}: is a {found} and not a {kind} checkpoint; {advice(kind)}")


def load(
    model_class: type[Any], path: str, kind: str, setting: str, *, may_lack: tuple[str, ...], **more: Any
) -> Loaded:
    """A checkpoint, in float32: one file or several, safetensors or PyTorch's own (read as weights alone).

    Args:
        model_class: of transformers.
        may_lack: how the names of weights begin that may be missing.
        more: for from_pretrained.

    Raises:
        UserError: no such checkpoint, another of its weights is missing, or one has another size than its settings say.
    """
    try:
        found: Any = model_class.from_pretrained(
            path, output_loading_info=True, dtype=torch.float32, ignore_mismatched_sizes=True, **more
        )
    except Exception as error:  # transformers, torch and safetensors raise many kinds of what a broken file holds
        raise UserError(
            f"{setting}: no {kind} checkpoint could be loaded ({_reason(error)}); {advice(kind)}"
        ) from error
    model, info = found
    unfit = sorted(name for name, *_ in info["mismatched_keys"])
    if unfit:
        raise UserError(
            f"{setting}: {len(unfit)} of its weights do not have the sizes of its config.json ({', '.join(unfit[:3])}, "
            f"...); {advice(kind)}"
        )
    # What a checkpoint lacks transformers fills with random numbers and a warning.
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(may_lack))
    if missing:
        raise UserError(
            f"{setting}: not a {kind} checkpoint, {len(missing)} of its weights are missing "
            f"({', '.join(missing[:3])}, ...); {advice(kind)}"
        )
    return Loaded(model, info["missing_keys"], info["unexpected_keys"])


def _reason(error: Exception) -> str:
    """In one line."""
    if isinstance(error, (UnpicklingError, EOFError)):  # torch's own text tells how to run what a file holds as code
        return "pytorch_model.bin holds no weights, or more than weights"
    said = " ".join(str(error).strip().splitlines()[:1])
    return said if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {said}"
