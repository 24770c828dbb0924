"""Launches of a study: the launchers in a fixed order, each with its whole settings in `OUT/settings`.

A training run is done when it says so (`DONE`) and is resumed until then; an evaluation when its scores are written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table
from mbsd.config.catalogs import CatalogConfig
from mbsd.config.data import DataConfig
from mbsd.config.parse import parse, parse_scoring
from mbsd.config.run import FinetuneConfig, PretrainConfig
from mbsd.config.run_files import DONE
from mbsd.config.scoring import EvaluateConfig
from mbsd.data.inputs import open_items
from mbsd.errors import UserError
from mbsd.io.files import digest_of
from mbsd.tools.studies.commands import Command
from mbsd.tools.studies.runner import Runner
from mbsd.tools.studies.settings_files import SettingsFiles, changed, same_inputs

Launcher = Literal["pretrain", "finetune", "evaluate"]


@dataclass(frozen=True)
class Launch:
    """One start of a launcher.

    Attributes:
        name: unique in the study; of a training run also its folder below the study's.
        config: the YAML.
        deepspeed: DeepSpeed's JSON; None: nothing is trained.
        done: exists when, and only when, it has ended well.
        after: names of the launches that it starts from; None: all before it.
    """

    name: str
    launcher: Launcher
    config: dict[str, Any]
    deepspeed: dict[str, Any] | None
    done: Path
    after: tuple[str, ...] | None = None


def check_launches(launches: Iterable[Launch]) -> None:
    """Read the settings of launches as the launchers will, before anything is written or started.

    Raises:
        UserError: some are wrong.
    """
    with tempfile.TemporaryDirectory(prefix="mbsd-study-") as folder:
        for launch in launches:
            one = SettingsFiles(Path(folder) / launch.name, launch.config, launch.deepspeed)
            one.write()
            _check(launch, one.arguments)


def training(name: str, launcher: Launcher, folder: Path, config: dict[str, Any], deepspeed: dict[str, Any]) -> Launch:
    """A training run in `folder`, with a mirror of its own below the study's."""
    mirror = (config.get("run") or {}).get("mirror")
    own = {"run.dir": str(folder)} | ({"run.mirror": f"{mirror}/{name}"} if mirror else {})
    return Launch(name, launcher, changed(config, own), deepspeed, folder / DONE)


def evaluation(name: str, scores: Path, config: dict[str, Any]) -> Launch:
    """An evaluation that writes the JSON file `scores`."""
    return Launch(name, "evaluate", changed(config, {"out": str(scores)}), None, scores)


def run_launches(runner: Runner, out: Path, launches: Sequence[Launch], where: str) -> None:
    """Run what is not done yet, in order; a launch that fails ends this process, those before it stay.

    Args:
        where: the option that names `out`.

    Raises:
        UserError: a launch's settings are wrong (raised before any is started), or the study in `out` was begun with
            others; the message names the first that differs.
    """
    files = [SettingsFiles(out / "settings" / launch.name, launch.config, launch.deepspeed) for launch in launches]
    for one in files:
        one.refuse_others(where)
    written = [path for one in files for path in one.write()]
    try:
        for launch, one in zip(launches, files, strict=True):
            _check(launch, one.arguments)
    except UserError:
        for path in written:  # nothing was begun with wrong settings: the next start may correct them
            path.unlink()
        raise
    same_inputs(out / "inputs.json", _fingerprints(launches), where)
    runner.run(
        [
            Command(launch.name, launch.done, tuple(one.arguments), launch.launcher, after=launch.after)
            for launch, one in zip(launches, files, strict=True)
        ]
    )


def _fingerprints(launches: Iterable[Launch]) -> dict[str, str]:
    """Path -> fingerprint of the catalogues and tables that are read."""
    found: dict[str, str] = {}
    for data in (launch.config["data"] for launch in launches):
        several = tuple(CatalogConfig(**one) for one in data["catalogs"]) if data.get("catalogs") else None
        read = DataConfig(data.get("catalog"), several)
        for path in read.catalog_paths:
            if path not in found:
                found[path] = Catalog(path).fingerprint
        if data.get("table") is not None and data["table"] not in found:
            found[data["table"]] = Table(data["table"], open_items(read)).fingerprint
            # That is the catalogue's: two tables over it have the same one.
            found[f"{data['table']} (SHA-256)"] = digest_of(Path(data["table"]))
    return found


def _check(launch: Launch, arguments: Sequence[str]) -> None:
    """Read the settings as the launcher itself will."""
    if launch.launcher == "evaluate":
        parse_scoring(EvaluateConfig, arguments)
    else:
        parse(PretrainConfig if launch.launcher == "pretrain" else FinetuneConfig, arguments)
