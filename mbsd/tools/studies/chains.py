"""Rows of Table 6 as chains of launches: pre-train, fine-tune, evaluate. Rows share the stages they have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mbsd.config.paths import tree_with_home
from mbsd.config.run import BaseConfig
from mbsd.errors import UserError
from mbsd.io.settings_text import read_yaml
from mbsd.tools.studies.launches import Launch, evaluation, training
from mbsd.tools.studies.settings import StageConfig, StudyConfig
from mbsd.tools.studies.settings_files import changed
from mbsd.tools.studies.shop import Shop


@dataclass(frozen=True)
class Chain:
    """The pre-training of a row.

    Attributes:
        name: as in the table.
        stage1, stage2: dotted settings that differ from the study's; None: the row leaves this stage out.
    """

    name: str
    stage1: dict[str, Any] | None = field(default_factory=dict)
    stage2: dict[str, Any] | None = field(default_factory=dict)


def chain_of(row: int, constant_weight: float) -> Chain:
    """A row of Table 6, as section 4.7 describes it."""
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
    """One fine-tuning of a row; its scores lie in the run's folder."""

    row: int
    name: str
    seed: int
    batch_size: int
    learning_rate: float
    folder: Path

    def scores(self, evaluation: str) -> Path:
        """The JSON of one of its evaluations."""
        return self.folder / f"{evaluation}.json"


def plan(
    config: StudyConfig, shop: Shop | None, evaluations: dict[str, dict[str, Any]]
) -> tuple[list[Launch], list[Cell]]:
    """All launches of a study, each after those it needs, and its cells.

    Args:
        shop: in place of the catalogue and tables that the YAML files name.
        evaluations: of each cell, name -> dotted settings of `launchers/evaluate.py`.

    Raises:
        UserError: a file cannot be read, or sets something that the grid would have to change.
    """
    launches: dict[str, Launch] = {}
    cells: list[Cell] = []
    out = Path(config.out)
    for seed in config.chosen_seeds:
        for row in config.chosen_rows:
            chain = chain_of(row, config.constant_weight)
            model = read_yaml(Path(config.stage1.config)).get("model", {})
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
                launches[name] = training(
                    name, "pretrain", out / name, changed(given, settings), files.deepspeed().tree
                )
                start = out / name
            for batch_size, rate, ds_config in _grid(config):
                name = f"seed-{seed}/row-{row}/batch-{batch_size}-lr-{rate:g}"
                tree = _tree(config.finetune, shop, shop.attributes if shop else None, seed)
                launches[name] = training(name, "finetune", out / name, _started(tree, start, model), ds_config)
                cell = Cell(row, chain.name, seed, batch_size, rate, out / name)
                cells.append(cell)
                for of, settings in evaluations.items():
                    asked = changed({"model": str(cell.folder), "data": tree.get("data", {})}, config.evaluate)
                    scored = evaluation(f"{name}/{of}", cell.scores(of), changed(asked, settings))
                    launches[scored.name] = scored
    return list(launches.values()), cells


def pair_table(config: StudyConfig, shop: Shop | None) -> tuple[Path, Path]:
    """The catalogue and the pair table of stage 2."""
    data = _tree(config.stage2, shop, shop.pairs if shop else None, 0).get("data", {})
    if data.get("catalogs"):
        raise UserError(f"{config.stage2.config}: data.catalogs: a study reads one catalogue; set data.catalog")
    if missing := [name for name in ("catalog", "table") if not data.get(name)]:
        raise UserError(f"{config.stage2.config}: data.{missing[0]} is not set, and stage 2 reads it; set it")
    return Path(data["catalog"]), Path(data["table"])


def _tree(files: StageConfig, shop: Shop | None, table: Path | None, seed: int) -> dict[str, Any]:
    """The settings of a run but for where it starts and lies; the paths that all stages have with `~` expanded."""
    places: dict[str, Any] = {"run.seed": seed}
    if shop is not None:
        places["data.catalog"] = str(shop.catalog)
    if table is not None:
        places["data.table"] = str(table)
    tree = changed(read_yaml(Path(files.config)), {**places, **files.settings})
    return tree_with_home(tree, BaseConfig)


def _started(tree: dict[str, Any], start: Path | None, model: dict[str, Any]) -> dict[str, Any]:
    """Settings that start from the weights of the run `start`; without one, as stage 1 would have started."""
    if start is not None:
        return changed(tree, {"run.init_from": str(start)})
    return changed(tree, {"run.init_from": None, "model": {**model, **tree.get("model", {})}})


def _grid(config: StudyConfig) -> list[tuple[int, float, dict[str, Any]]]:
    """(batch size, learning rate, DeepSpeed's JSON) of each fine-tuning."""
    ds_config = config.finetune.deepspeed()
    grid = []
    for batch_size in config.batch_sizes or (None,):
        for rate in config.learning_rates or (None,):
            resolved = ds_config.changed(batch_size, rate)
            grid.append((*resolved.batch_and_rate(), resolved.tree))
    return grid


def _only_model(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name.startswith("model.")}
