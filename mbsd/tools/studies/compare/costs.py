"""What each compared model costs: parameters, FLOPs and milliseconds of a forward, on the tasks' own test rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mbsd.checkpoint.resume import weights_folder
from mbsd.config.parse import parse_scoring
from mbsd.config.scoring import EvaluateConfig
from mbsd.data.inputs import Builders, open_catalog
from mbsd.data.loader import one_batch, spread
from mbsd.data.spec import Labelled
from mbsd.data.text import load_tokenizer
from mbsd.io.console import quiet_libraries
from mbsd.io.files import read_own_json
from mbsd.metrics.throughput import model_flops
from mbsd.model.load import load_model, saved_config
from mbsd.parallel.devices import choose_device
from mbsd.parallel.launch_env import find_launch_environment
from mbsd.parallel.world import World
from mbsd.tasks.registry import TASKS
from mbsd.tasks.task import task_samples
from mbsd.tools.bench.latency import LatencyBench, measure_in_turns
from mbsd.tools.bench.latency_models import Step
from mbsd.tools.studies.compare.plan import Trained

ROWS = 64  # test rows whose lengths and pictures FLOPs are counted of
SECONDS = 20.0  # of a model's forwards together


@dataclass(frozen=True)
class Costs:
    """Of one model.

    Attributes:
        parameters: of the model with its head.
        flops: matmuls of the forward of one item, as `model_flops` counts them, the mean over test rows.
        milliseconds: of a forward of one test row of median length, the median.
        device: on which it was measured.
    """

    parameters: int
    flops: float
    milliseconds: float
    device: str


@dataclass(frozen=True)
class Loaded:
    """A model, ready for a forward of one row."""

    parameters: int
    flops: float
    step: Step


def measure_costs(cells: Mapping[str, Trained], settings: Path, on_cpu: bool, steps: int) -> dict[str, Costs]:
    """Measure one fine-tuned model of each name; all take turns, a forward each.

    Args:
        settings: folder with the settings of the evaluations.
        on_cpu: also where there is a GPU.
        steps: forwards of each.
    """
    quiet_libraries()
    device = torch.device("cpu") if on_cpu else choose_device(find_launch_environment(os.environ))
    threads = torch.get_num_threads()
    bench = LatencyBench((1,), (), steps, SECONDS, threads)
    with torch.inference_mode():
        loaded = {name: _load(cell, settings, device) for name, cell in cells.items()}
        measured = measure_in_turns(bench, {name: one.step for name, one in loaded.items()}, "whole", 1, device)
    told = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {threads} threads"
    times = {cell["model"]: cell["median_ms"] for cell in measured}
    return {name: Costs(one.parameters, one.flops, times[name], told) for name, one in loaded.items()}


def _load(cell: Trained, settings: Path, device: torch.device) -> Loaded:
    """As `launchers/evaluate.py` loads it, with rows of the table it was scored on."""
    name = settings / cell.folder.relative_to(settings.parent) / f"{cell.scores.stem}.yaml"
    config = parse_scoring(EvaluateConfig, ["--config", str(name)])
    folder = weights_folder(str(cell.folder))
    saved, task = saved_config(folder), TASKS[cell.task]
    catalog, table = open_catalog(config.data, task.kind)
    assert table is not None, "EvaluateConfig.check"
    samples = task_samples(table, config.split, task.known_labels(table, saved.label_names))
    world = World(0, 1, 0, device)
    tokenizer = load_tokenizer(config.data.tokenizer or str(folder))
    builder = Builders(catalog, tokenizer, config.data, saved, ROWS).build(
        (cell.model.view,), Labelled(task.label_dtype), world
    )
    model: Any = load_model(task.head_class, folder, config.data.image_size, with_head=True)
    model.to(device).eval()
    chosen = [samples[row] for row in spread(len(samples), ROWS).tolist()]
    many = one_batch(builder, chosen, device)
    by_length = np.argsort(many.views.real_lengths[: len(chosen)], kind="stable")
    one = one_batch(builder, [chosen[int(by_length[len(chosen) // 2])]], device)
    whole = model_flops(saved, many.views.real_lengths, many.images.shape[0])  # forward and backward, which is twice it
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Loaded(parameters, whole / 3 / many.num_samples, lambda: model(one).logits)


def read_costs(file: Path, names: Sequence[str]) -> dict[str, Costs] | None:
    """What an earlier start measured; None where it measured other models."""
    if not file.exists():
        return None
    found = read_own_json(file, "remove it: it is measured again")
    return {name: Costs(**costs) for name, costs in found.items()} if list(found) == list(names) else None


def as_json(costs: Mapping[str, Costs]) -> dict[str, Any]:
    """For `read_costs`."""
    return {name: asdict(one) for name, one in costs.items()}


def first_of_each(cells: Sequence[Trained]) -> Iterator[tuple[str, Trained]]:
    """(model, its first task of the first seed)."""
    seen: set[str] = set()
    for cell in cells:
        if cell.model.name not in seen:
            seen.add(cell.model.name)
            yield cell.model.name, cell
