"""What a model that begins with another's weights has of them, and what not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class FromPublished:
    """What a model has of one checkpoint that another project wrote.

    Attributes:
        kind: of model, such as BERT.
        setting: that named it.
        taken: the model's weights that it gave.
        used, left_over: its own names of its weights.
        notes: what was done to them, in words.
    """

    kind: str
    setting: str
    taken: Set[str]
    used: Set[str]
    left_over: Set[str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sources:
    """What a model has of the checkpoints of model.backbone and model.image_weights, and what is drawn at random."""

    each: tuple[FromPublished, ...]
    weights: Mapping[str, int] = field(repr=False)

    @classmethod
    def of(cls, model: Any, source: FromPublished) -> Sources:
        """With one more source than `model` has noted before."""
        before = model.taken_over.each if isinstance(model.taken_over, Sources) else ()
        return cls((*before, source), {name: weight.numel() for name, weight in model.named_parameters()})

    @property
    def new(self) -> tuple[str, ...]:
        """Parts of the model that no checkpoint gave."""
        return covered(set(self.weights) - set().union(*(source.taken for source in self.each)), set(self.weights))

    def __str__(self) -> str:
        said = []
        for source in self.each:
            count = sum(self.weights[name] for name in source.taken if name in self.weights)
            taken = ", ".join(covered(source.taken, set(self.weights)))
            named = source.setting if len(self.each) > 1 or not source.setting.startswith("model.backbone") else ""
            said.append(f"took {taken} ({count:,} weights) of the {source.kind}{f' {named}' if named else ''}")
            said += source.notes
            if source.left_over:
                said.append(f"left over in it: {', '.join(covered(source.left_over, source.used | source.left_over))}")
        return "; ".join([*said, *([f"new: {', '.join(self.new)}"] if self.new else [])])


def covered(chosen: Set[str], of: Set[str]) -> tuple[str, ...]:
    """The fewest parts, by their dotted names, that hold all weights of `chosen` and no other `of` these."""
    shared = {prefix for name in of - chosen for prefix in _prefixes(name)}
    parts = {next((prefix for prefix in _prefixes(name) if prefix not in shared), name) for name in chosen}
    return tuple(sorted(part.removeprefix(BACKBONE) for part in parts))


def _prefixes(name: str) -> list[str]:
    """Of a weight's dotted name, from the shortest, itself the last; the backbone is no part by itself."""
    words = name.split(".")
    first = 2 if name.startswith(BACKBONE) else 1
    return [".".join(words[:count]) for count in range(first, len(words) + 1)]
