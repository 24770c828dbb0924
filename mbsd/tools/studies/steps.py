"""The steps of a study: runs of the launchers in a fixed order, each in its own folder, gone on with where it stopped.

`OUT/settings/NAME.yaml` and `NAME.json` are what a step is started with, whole, and what says later that a finished
step was one of these settings. A run is done when it says so (`DONE`), an evaluation when its scores are written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table
from mbsd.config.parse import dotted, parse, parse_scoring
from mbsd.config.run import FinetuneConfig, PretrainConfig
from mbsd.config.run_files import DONE
from mbsd.config.scoring import EvaluateConfig
from mbsd.errors import UserError
from mbsd.io.files import replace_text
from mbsd.tools.studies.commands import Commands

Launcher = Literal["pretrain", "finetune", "evaluate"]


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: unique in the study; of a run also its folder below the study's.
        config: the YAML.
        deepspeed: DeepSpeed's JSON; None: nothing is trained.
        done: is there when, and only when, the step has ended well.
    """

    name: str
    launcher: Launcher
    config: dict[str, Any]
    deepspeed: dict[str, Any] | None
    done: Path


def run_step(name: str, launcher: Launcher, folder: Path, config: dict[str, Any], deepspeed: dict[str, Any]) -> Step:
    """A training run in `folder`."""
    return Step(name, launcher, changed(config, {"run.dir": str(folder)}), deepspeed, folder / DONE)


def evaluate_step(name: str, scores: Path, config: dict[str, Any]) -> Step:
    """An evaluation that writes `scores`."""
    return Step(name, "evaluate", changed(config, {"out": str(scores)}), None, scores)


def run_steps(commands: Commands, out: Path, steps: Sequence[Step], where: str) -> None:
    """Do what is not done yet, in order; a step that fails ends this process, those before it stay.

    Args:
        where: the option that names `out`.

    Raises:
        UserError: a step's settings cannot be meant (said before any step is started), or the study in `out` was begun
            with others; the message names the first that differs.
    """
    settings = out / "settings"
    fresh = [_Settings(settings / step.name, step.config, step.deepspeed) for step in steps]
    for one in fresh:
        one.refuse_others(where)
    written = [path for one in fresh for path in one.write()]
    try:
        for step in steps:
            _check(step, settings)
    except UserError:
        for path in written:  # a mistake is no beginning: the next start may say it otherwise
            path.unlink()
        raise
    same_inputs(out / "inputs.json", _fingerprints(steps), where)
    for index, step in enumerate(steps, 1):
        if step.done.exists():
            commands.console.print(f"[{index}/{len(steps)}] {step.name}: done", markup=False, highlight=False)
            continue
        commands.console.print(f"[{index}/{len(steps)}] {step.name}", markup=False, highlight=False)
        commands.launcher(step.name, step.launcher, *_arguments(step, settings))
        if not step.done.exists():
            commands.console.print(f"{step.name} was stopped; the same command goes on from there", markup=False)
            raise SystemExit(1)


def same_settings(out: Path, name: str, tree: dict[str, Any], where: str) -> None:
    """Write down settings of the study that are no step's.

    Raises:
        UserError: it was begun with others.
    """
    settings = _Settings(out / "settings" / name, tree, None)
    settings.refuse_others(where)
    settings.write()


def _fingerprints(steps: Iterable[Step]) -> dict[str, str]:
    """Of the catalogues and tables that the steps read, by path."""
    found: dict[str, str] = {}
    for data in (step.config["data"] for step in steps):
        if data["catalog"] not in found:
            found[data["catalog"]] = Catalog(data["catalog"]).fingerprint
        if data.get("table") is not None and data["table"] not in found:
            found[data["table"]] = Table(data["table"], Catalog(data["catalog"])).fingerprint
    return found


def same_inputs(path: Path, inputs: Mapping[str, str], where: str) -> None:
    """Write down the fingerprints of what steps read; `path` has those of before.

    Raises:
        UserError: something that was read before is not what it was.
    """
    before: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    for name, fingerprint in inputs.items():
        if before.get(name, fingerprint) != fingerprint:
            raise UserError(
                f"{name}: is not what it was when this study was begun ({path} has its fingerprint); bring it back, "
                f"or choose another {where}"
            )
    replace_text(path, json.dumps({**before, **inputs}, indent=1) + "\n")


def read_yaml(path: str) -> dict[str, Any]:
    """A launcher's YAML file.

    Raises:
        UserError: it cannot be read, or is no mapping.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not a readable YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected settings such as `run:`, found {type(tree).__name__}")
    return tree


def changed(tree: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with dotted settings put in; None takes a setting out.

    Raises:
        UserError: a setting lies below one that is no section.
    """
    copy: dict[str, Any] = json.loads(json.dumps(tree))
    for name, value in settings.items():
        *sections, last = name.split(".")
        inner = copy
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise UserError(f"{name}={value}: {section} is {inner!r}, which has no settings; write it otherwise")
        if value is None:
            inner.pop(last, None)
        else:
            inner[last] = json.loads(json.dumps(value))
    return copy


@dataclass(frozen=True)
class _Settings:
    """A step's two files, `path`.yaml and `path`.json."""

    path: Path
    config: dict[str, Any]
    deepspeed: dict[str, Any] | None

    def refuse_others(self, where: str) -> None:
        for file, tree in self._files():
            if not file.exists():
                continue
            # YAML takes JSON's 1e-06 for a text.
            there = (json.loads if file.suffix == ".json" else yaml.safe_load)(file.read_text(encoding="utf-8"))
            before, now = dict(dotted(there)), dict(dotted(json.loads(json.dumps(tree))))
            for name in sorted(before.keys() | now.keys()):
                old, new = before.get(name, "not set"), now.get(name, "not set")
                if old != new:
                    raise UserError(
                        f"{file}: {name} was {old!r} when this study was begun and is {new!r} now; set it back, or "
                        f"choose another {where}"
                    )

    def write(self) -> list[Path]:
        """Write what is not there yet; returns what was written."""
        written = []
        for file, tree in self._files():
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                text = json.dumps(tree, indent=1) + "\n" if file.suffix == ".json" else yaml.safe_dump(tree)
                replace_text(file, text)
                written.append(file)
        return written

    def _files(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        yield _file(self.path, "yaml"), self.config
        if self.deepspeed is not None:
            yield _file(self.path, "json"), self.deepspeed


def _file(path: Path, suffix: str) -> Path:
    """A name may have dots (lr-0.001), so no with_suffix."""
    return path.with_name(f"{path.name}.{suffix}")


def _arguments(step: Step, settings: Path) -> list[str]:
    words = ["--config", str(_file(settings / step.name, "yaml"))]
    if step.deepspeed is not None:
        words += ["--deepspeed_config", str(_file(settings / step.name, "json"))]
    return words


def _check(step: Step, settings: Path) -> None:
    """As the launcher itself will."""
    if step.launcher == "evaluate":
        parse_scoring(EvaluateConfig, _arguments(step, settings))
    else:
        parse(PretrainConfig if step.launcher == "pretrain" else FinetuneConfig, _arguments(step, settings))
