"""What a model that begins with another's weights has of them, and what not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

BACKBONE = "mbsd."  # of the names of its weights in every head


@dataclass(frozen=True)
class TakenOver:
    """What became of the weights of a folder that a model was loaded from, by the names of the head's parts.

    Attributes:
        backbone: numbers in its weights, all of which are taken.
        head: taken too, for the folder holds the same head.
        dropped: in the folder, and not in the model.
        new: in the model, and drawn at random: the folder does not hold them, or in another size, or they were trained
            for another question.
    """

    backbone: int
    head: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: Any, info: Mapping[str, Collection[Any]], *, fresh_head: bool) -> TakenOver:
        """As transformers' loading info has it.

        Args:
            fresh_head: the head was drawn anew after it was loaded.
        """
        weights = {name: weight.numel() for name, weight in model.named_parameters()}
        unfit = {name for name, *_ in info["mismatched_keys"]}
        held = set(weights) - set(info["missing_keys"]) - unfit
        new = set(weights) if fresh_head else set(weights) - held
        dropped = {*info["unexpected_keys"], *unfit, *(held if fresh_head else ())}
        return cls(
            sum(count for name, count in weights.items() if name.startswith(BACKBONE)),
            _parts(held - new),
            _parts(dropped),
            _parts(new),
        )

    def __str__(self) -> str:
        taken = ", ".join([f"the backbone ({self.backbone:,} weights)", *self.head])
        rest = (("; dropped ", self.dropped), ("; new: ", self.new))
        return f"took {taken}" + "".join(f"{word}{', '.join(names)}" for word, names in rest if names)


def _parts(names: Collection[str]) -> tuple[str, ...]:
    """The parts of the head that these weights belong to."""
    return tuple(sorted({name.partition(".")[0] for name in names if not name.startswith(BACKBONE)}))
