"""Rows of Table 6 as chains of commands: pre-train, fine-tune, evaluate. Rows share the stages they have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mbsd.config.deepspeed import read_deepspeed
from mbsd.tools.studies.settings import StageConfig, StudyConfig
from mbsd.tools.studies.shop import Shop
from mbsd.tools.studies.steps import Step, changed, evaluate_step, read_yaml, run_step


@dataclass(frozen=True)
class Chain:
    """What a row does before it is fine-tuned.

    Attributes:
        name: as in the table.
        stage1: settings over stage 1's; None: there is none.
        stage2: the same of stage 2.
    """

    name: str
    stage1: dict[str, Any] | None = field(default_factory=dict)
    stage2: dict[str, Any] | None = field(default_factory=dict)


def chain_of(row: int, constant_weight: float) -> Chain:
    """Section 4.7's rows."""
    no_distillation = {"sdmi.distillation": False}
    return {
        1: Chain("MBSD"),
        2: Chain("w/o pre-training", None, None),
        3: Chain("w/o preliminary pre-training", None),
        4: Chain("w/o continue pre-training", stage2=None),
        5: Chain("w/o continue pre-training and mini CNN", {"model.patchify": "linear"}, None),
        6: Chain(
            "w/o L_QT, L_QV, L_KL and L_RS",
            stage2={"sdmi.unimodal_losses": False, **no_distillation},
        ),
        7: Chain("w/o L_KL and L_RS", stage2=no_distillation),
        8: Chain("w/o adaptive weight of L_KL and L_RS", stage2={"sdmi.weight": constant_weight}),
    }[row]


# Rows with the same stage name share the run.
STAGE1_NAMES = {5: "stage1-linear"}
STAGE2_NAMES = {3: "stage2-alone", 6: "stage2-no-sdmi", 7: "stage2-no-distillation", 8: "stage2-constant-weight"}


@dataclass(frozen=True)
class Cell:
    """One fine-tuning of a row.

    Attributes:
        folder: of the run; its scores lie in it.
    """

    row: int
    name: str
    seed: int
    batch_size: int
    learning_rate: float
    folder: Path

    def scores(self, of: str) -> Path:
        """The JSON of one of its evaluations."""
        return self.folder / f"{of}.json"


def plan(
    config: StudyConfig, shop: Shop | None, evaluations: dict[str, dict[str, Any]]
) -> tuple[list[Step], list[Cell]]:
    """All steps of a study, each behind those it needs, and its cells.

    Args:
        shop: in place of what the YAML files name.
        evaluations: of each cell: name -> dotted settings of `launchers/evaluate.py`.

    Raises:
        UserError: a file cannot be read, or says something that would have to change with the grid.
    """
    steps: dict[str, Step] = {}
    cells: list[Cell] = []
    out = Path(config.out)
    for seed in config.chosen_seeds:
        for row in config.chosen_rows:
            chain = chain_of(row, config.constant_weight)
            model = read_yaml(config.stage1.config).get("model", {})
            model = changed({"model": model}, _only_model(config.stage1.settings))["model"]
            start: Path | None = None
            for stage, names, files, table in (
                ("stage1", STAGE1_NAMES, config.stage1, None),
                ("stage2", STAGE2_NAMES, config.stage2, shop.pairs if shop else None),
            ):
                settings = chain.stage1 if stage == "stage1" else chain.stage2
                if settings is None:
                    continue
                name = f"seed-{seed}/{names.get(row, stage)}"
                # Stage 1 starts as its own file says.
                given = _tree(files, shop, table, seed) if stage == "stage1" else _started(
                    _tree(files, shop, table, seed), start, model)  # fmt: skip
                steps[name] = run_step(name, "pretrain", out / name, changed(given, settings), _json(files))
                start = out / name
            for batch_size, rate, ds_config in _grid(config):
                name = f"seed-{seed}/row-{row}/batch-{batch_size}-lr-{rate:g}"
                tree = _tree(config.finetune, shop, shop.attributes if shop else None, seed)
                steps[name] = run_step(name, "finetune", out / name, _started(tree, start, model), ds_config)
                cell = Cell(row, chain.name, seed, batch_size, rate, out / name)
                cells.append(cell)
                for of, settings in evaluations.items():
                    asked = changed({"model": str(cell.folder), "data": tree.get("data", {})}, config.evaluate)
                    step = evaluate_step(f"{name}/{of}", cell.scores(of), changed(asked, settings))
                    steps[step.name] = step
    return list(steps.values()), cells


def _tree(files: StageConfig, shop: Shop | None, table: Path | None, seed: int) -> dict[str, Any]:
    places: dict[str, Any] = {"run.seed": seed}
    if shop is not None:
        places["data.catalog"] = str(shop.catalog)
    if table is not None:
        places["data.table"] = str(table)
    return changed(read_yaml(files.config), {**places, **files.settings})


def _started(tree: dict[str, Any], start: Path | None, model: dict[str, Any]) -> dict[str, Any]:
    """From the weights of a run before; without one as stage 1 would have started."""
    if start is not None:
        return changed(tree, {"run.init_from": str(start)})
    return changed(tree, {"run.init_from": None, "model": {**model, **tree.get("model", {})}})


def _grid(config: StudyConfig) -> list[tuple[int, float, dict[str, Any]]]:
    """(batch size, learning rate, DeepSpeed's JSON) of each fine-tuning."""
    ds_config = read_deepspeed(Path(config.finetune.deepspeed_config))
    grid = []
    for batch_size in config.batch_sizes or (None,):
        for rate in config.learning_rates or (None,):
            resolved = ds_config.changed(batch_size, rate)
            grid.append((*resolved.batch_and_rate(), resolved.tree))
    return grid


def _json(files: StageConfig) -> dict[str, Any]:
    return read_deepspeed(Path(files.deepspeed_config)).tree


def _only_model(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name.startswith("model.")}
