"""LAMB's trust ratios as curves: how far each layer moves in a step, relative to its size."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

_LAYER = re.compile(r"\blayer\.(\d+)\.")


def summarise(ratios: Mapping[str, Tensor]) -> dict[str, float]:
    """Return "GROUP/min", "…/median" and "…/max" over the tensors of each layer group, and of "all".

    Args:
        ratios: parameter name -> trust ratio (0-d, on one device); read with one copy to the host.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    values = torch.stack(list(ratios.values())).tolist() if ratios else []
    for name, value in zip(ratios, values, strict=True):
        groups[layer_group(name)].append(value)
        groups["all"].append(value)
    summary = {}
    for group, of_group in sorted(groups.items()):
        summary[f"{group}/min"] = min(of_group)
        summary[f"{group}/median"] = statistics.median(of_group)
        summary[f"{group}/max"] = max(of_group)
    return summary


def layer_group(name: str) -> str:
    """Return where in the network a parameter is: layer_00 …, embeddings, patchify, pooler, or heads."""
    if match := _LAYER.search(name):
        return f"layer_{int(match[1]):02d}"
    _, in_backbone, inside = name.partition("mbsd.")
    if not in_backbone:
        return "heads"
    module, nested, _ = inside.partition(".")
    return module if nested else "embeddings"  # the backbone's own vectors: positions and modalities
