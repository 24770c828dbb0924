"""What `mbsd plan` does with its command line."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from mbsd.config.deepspeed import DeepSpeedConfig
from mbsd.config.parse import parse
from mbsd.config.run import BaseConfig, FinetuneConfig, PretrainConfig
from mbsd.errors import UserError
from mbsd.tools.plan.gpus import find_gpu


def plan_run(
    config: Path,
    deepspeed_config: Path | None,
    overrides: Sequence[str],
    *,
    gpu: str,
    gpus: int,
    nodes: int | None,
    samples: int | None,
    title_tokens: int,
    query_tokens: int,
    network_gbit: float,
    json_file: Path | None,
) -> None:
    """Print the plan of a config, and write its numbers to `json_file`.

    Raises:
        UserError: a setting that a run would refuse too, an unknown GPU, or a precision it lacks.
    """
    try:
        tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--config {config}: not a readable YAML file: {' '.join(str(error).split())}") from error
    kind: type[BaseConfig] = FinetuneConfig if isinstance(tree, dict) and "task" in tree else PretrainConfig
    words = ["--config", str(config), *overrides]
    if deepspeed_config is not None:
        words += ["--deepspeed_config", str(deepspeed_config)]
    board = find_gpu(gpu)
    settings, ds_config = parse(kind, words, ds_default=DeepSpeedConfig({}))
    for name, value in (("title_tokens", title_tokens), ("query_tokens", query_tokens), ("samples", samples)):
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected 1 or more")
    if network_gbit <= 0:
        raise UserError(f"--network-gbit {network_gbit:g}: expected more than 0")

    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # nothing is computed: no GPU has to be here
    from mbsd.tools.plan.plan import make_plan
    from mbsd.tools.plan.report import as_json, print_plan
    from mbsd.tools.plan.shapes import Lengths

    plan = make_plan(
        settings, ds_config if ds_config.tree else None, board, gpus=gpus, nodes=nodes, samples=samples,
        lengths=Lengths(title_tokens, query_tokens), network=network_gbit * 1e9 / 8,
    )  # fmt: skip
    print_plan(plan, f"{config} on {gpus} x {board.name}")
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(as_json(plan), indent=1) + "\n", encoding="utf-8")
