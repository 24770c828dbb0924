"""`mbsd plan`: from the command line's values to a printed plan."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mbsd.config.deepspeed import DeepSpeedConfig
from mbsd.config.parse import parse
from mbsd.config.run import BaseConfig, FinetuneConfig, PretrainConfig
from mbsd.errors import UserError
from mbsd.io.files import replace_text
from mbsd.io.settings_text import read_yaml
from mbsd.tools.plan.gpus import find_gpu, make_cluster
from mbsd.tools.plan.measured import Shares, read_measured


@dataclass(frozen=True)
class PlanRequest:
    """The options of `mbsd plan`.

    Attributes:
        config: YAML of a training run.
        deepspeed_config: DeepSpeed's JSON; None: the paper's settings.
        overrides: words such as --section.key VALUE that change `config`.
        gpu: a name of `mbsd.tools.plan.gpus.GPUS`.
        gpus: of all nodes together.
        nodes: None: eight GPUs to a node.
        samples: of the training split; None: counted in the catalogue, if that exists here.
        title_tokens, query_tokens: mean lengths.
        network_gbit: bandwidth of one node, Gbit/s in one direction.
        measured: the gpu.json of `make gpu` on such a GPU; None: shares of the data sheet are assumed.
    """

    config: Path
    deepspeed_config: Path | None
    overrides: tuple[str, ...]
    gpu: str
    gpus: int
    nodes: int | None
    samples: int | None
    title_tokens: int
    query_tokens: int
    network_gbit: float
    measured: Path | None = None


def plan_run(request: PlanRequest, json_file: Path | None = None) -> None:
    """Print the plan of a training run, and write its numbers to `json_file` if given.

    Raises:
        UserError: a setting that a run would refuse too, an unknown GPU, a precision that it does not support, or
            measurements of another GPU.
    """
    config = request.config
    kind: type[BaseConfig] = FinetuneConfig if "task" in read_yaml(config) else PretrainConfig
    words = ["--config", str(config), *request.overrides]
    if request.deepspeed_config is not None:
        words += ["--deepspeed_config", str(request.deepspeed_config)]
    gpu = find_gpu(request.gpu)
    settings, ds_config = parse(kind, words, ds_default=DeepSpeedConfig({}))
    for name in ("title_tokens", "query_tokens", "samples"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected 1 or more")
    if request.network_gbit <= 0:
        raise UserError(f"--network-gbit {request.network_gbit:g}: expected more than 0")

    shares = read_measured(request.measured, gpu) if request.measured is not None else Shares()

    from mbsd.tools.plan.plan import make_plan  # torch is loaded only once the settings are known to be right
    from mbsd.tools.plan.report import as_json, print_plan
    from mbsd.tools.plan.shapes import Lengths

    plan = make_plan(
        settings,
        ds_config if ds_config.tree else None,
        make_cluster(gpu, request.gpus, request.nodes, request.network_gbit * 1e9 / 8),
        Lengths(request.title_tokens, request.query_tokens),
        request.samples,
        shares,
    )
    print_plan(plan, f"{config} on {request.gpus} x {gpu.name}")
    if json_file is not None:
        replace_text(json_file, json.dumps(as_json(plan), indent=1) + "\n")
