"""How much of its data sheet a GPU reaches: assumed, or read from the gpu.json that `make gpu` wrote on one.

```
{"gpu": {"name": "NVIDIA H200", "capability": [9, 0], "memory": 150754820096}, "torch": "2.10.0", "cuda": "12.8",
 "figures": {"matmul_share": {"value": 0.7, "how": "..."}, "bandwidth_share": {"value": null, "reason": "..."},
             "launch_seconds": {...}, "lamb_bandwidth_share": {...}, ...}}
```

A figure that could not be measured has the value null and a reason; a plan assumes it. Other figures are not read.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbsd.errors import UserError
from mbsd.tools.plan.gpus import Gpu

# A figure of gpu.json -> the field of `Shares` that it gives. The last one may be absent.
FIGURES = {
    "matmul_share": "matmul", "bandwidth_share": "bandwidth", "launch_seconds": "launch", "lamb_bandwidth_share": "lamb"
}  # fmt: skip
MAY_BE_ABSENT = ("lamb_bandwidth_share",)


@dataclass(frozen=True)
class Shares:
    """What a plan's times are computed with; the defaults are assumptions, typical of eager PyTorch.

    Attributes:
        matmul: of the data sheet's peak that matrix products reach.
        bandwidth: of the memory bandwidth that other kernels reach.
        launch: seconds that the host needs to launch one kernel.
        lamb: of the memory bandwidth that LAMB's step reaches; None: `bandwidth`.
        link: of NVLink and network.
        measured: the fields above that were measured.
        source: what measured them, for people; empty where nothing was.
    """

    matmul: float = 0.65
    bandwidth: float = 0.8
    launch: float = 8e-6
    lamb: float | None = None
    link: float = 0.8
    measured: tuple[str, ...] = ()
    source: str = ""

    @property
    def lamb_bandwidth(self) -> float:
        """Share of the memory bandwidth that LAMB's step reaches."""
        return self.bandwidth if self.lamb is None else self.lamb

    def described(self) -> list[str]:
        """For people: what was measured, if anything, and what is assumed."""
        words = {
            "matmul": f"{self.matmul:.0%} of the peak of matrix products",
            "bandwidth": f"{self.bandwidth:.0%} of memory bandwidth",
            "launch": f"{self.launch * 1e6:.1f} us to launch a kernel",
            "lamb": f"{self.lamb_bandwidth:.0%} of memory bandwidth in LAMB's step",
            "link": f"{self.link:.0%} of links",
        }
        known = [text for name, text in words.items() if name in self.measured]
        assumed = [text for name, text in words.items() if name not in self.measured]
        lines = [f"measured on {self.source}: {', '.join(known)}"] if known else []
        if self.source and not known:
            lines = [f"{self.source}: measured none of what a plan reads"]
        return [
            *lines,
            f"assumed, not measured: {', '.join(assumed)}, a loader that keeps up, every item with an image",
        ]


def read_measured(path: Path, gpu: Gpu) -> Shares:
    """The shares that gpu.json holds of this GPU; what it could not measure keeps its assumption.

    Raises:
        UserError: the file cannot be read, was written on another GPU, or a figure is missing or out of its range.
    """
    tree = _read(path)
    board, figures = _part(tree, "gpu", path), _part(tree, "figures", path)
    name, capability = board.get("name"), board.get("capability")
    if name not in gpu.device_names or capability != list(gpu.capability):
        expected = f"{' or '.join(gpu.device_names)}, capability {list(gpu.capability)}, as --gpu says"
        raise UserError(
            f"--measured {path}: gpu is {name}, capability {capability}; expected {expected}; run `make gpu` on such a "
            "GPU, or plan for the one that was measured"
        )
    values = {}
    for figure, field in FIGURES.items():
        if figure not in figures and figure in MAY_BE_ABSENT:
            continue
        value = _value(figures, figure, path)
        if value is not None:
            values[field] = value
    source = f"{name} ({path}, torch {tree.get('torch', '?')}, CUDA {tree.get('cuda', '?')})"
    return dataclasses.replace(Shares(), **values, measured=tuple(values), source=source)


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--measured {path}: not a readable JSON file: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"--measured {path}: expected an object with gpu and figures, as `make gpu` writes it")
    return tree


def _part(tree: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    part = tree.get(key)
    if not isinstance(part, dict):
        raise UserError(f"--measured {path}: {key} is {json.dumps(part)}; expected an object, as `make gpu` writes it")
    return part


def _value(figures: dict[str, Any], figure: str, path: Path) -> float | None:
    """A figure's value; None: not measured."""
    entry = figures.get(figure)
    if not isinstance(entry, dict) or "value" not in entry:
        raise UserError(
            f'--measured {path}: figures.{figure} is {json.dumps(entry)}; expected {{"value": a number, or null where '
            "it was not measured}, as `make gpu` writes it"
        )
    value = entry["value"]
    if value is None:
        return None
    unit = "seconds" if figure.endswith("_seconds") else "a share"
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise UserError(
            f"--measured {path}: figures.{figure}.value is {json.dumps(value)}; expected {unit} above 0, at most 1; "
            "run `make gpu` again, or write null there to have it assumed"
        )
    return float(value)
