"""The settings that a pipeline was begun with, in `OUT/settings`: a later start with others is refused.

`OUT/settings/NAME.yaml` and `NAME.json` are the whole settings of a launch. They are what it is started with, and the
proof that a finished one was started with these settings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mbsd.config.deepspeed import read_deepspeed
from mbsd.config.parse import dotted
from mbsd.errors import UserError
from mbsd.io.files import read_own_json, replace_text
from mbsd.io.settings_text import read_yaml


@dataclass(frozen=True)
class SettingsFiles:
    """The whole settings of one launch (or of a pipeline), in `path`.yaml and `path`.json.

    Attributes:
        path: without the suffix.
        deepspeed: DeepSpeed's JSON; None: there is none.
    """

    path: Path
    config: dict[str, Any]
    deepspeed: dict[str, Any] | None

    @property
    def arguments(self) -> list[str]:
        """Command line of a launcher that reads them."""
        words = ["--config", str(_file(self.path, "yaml"))]
        return words if self.deepspeed is None else [*words, "--deepspeed_config", str(_file(self.path, "json"))]

    def refuse_others(self, where: str) -> None:
        """Raise UserError where the files hold other settings; it names the first, and the option `where`."""
        for file, tree in self._files():
            if not file.exists():
                continue
            # YAML reads JSON's 1e-06 as text.
            damaged = f"choose another {where}"
            there = read_own_json(file, damaged) if file.suffix == ".json" else read_yaml(file)
            before, now = dict(dotted(there)), dict(dotted(json.loads(json.dumps(tree))))
            for name in sorted(before.keys() | now.keys()):
                old, new = before.get(name, "not set"), now.get(name, "not set")
                if old != new:
                    raise UserError(
                        f"{file}: {name} was {old!r} when this study was begun and is {new!r} now; set it back, or "
                        f"choose another {where}"
                    )

    def write(self) -> list[Path]:
        """Write the files that are not there yet; returns these."""
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


def same_settings(out: Path, name: str, tree: dict[str, Any], where: str) -> None:
    """Write settings of a pipeline that are no launch's to `out/settings/NAME.yaml`.

    Args:
        where: the option that names `out`.

    Raises:
        UserError: it was begun with others.
    """
    settings = SettingsFiles(out / "settings" / name, tree, None)
    settings.refuse_others(where)
    settings.write()


def same_inputs(path: Path, inputs: Mapping[str, str], where: str) -> None:
    """Write the fingerprints of the catalogues and tables that are read to `path`, beside those of earlier starts.

    Args:
        inputs: path -> fingerprint.
        where: the option that names the study's folder.

    Raises:
        UserError: something that an earlier start read has changed.
    """
    before: dict[str, str] = read_own_json(path, f"choose another {where}") if path.exists() else {}
    for name, fingerprint in inputs.items():
        if before.get(name, fingerprint) != fingerprint:
            raise UserError(
                f"{name}: is not what it was when this study was begun ({path} has its fingerprint); bring it back, "
                f"or choose another {where}"
            )
    replace_text(path, json.dumps({**before, **inputs}, indent=1) + "\n")


def write_deepspeed(
    path: Path, given: Path, batch_size: int, learning_rate: float, settings: Mapping[str, Any]
) -> None:
    """Write DeepSpeed's JSON `given` to `path` with another global batch size, peak rate and dotted settings."""
    tree = changed(read_deepspeed(given).changed(batch_size, learning_rate).tree, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(tree, indent=1) + "\n")


def changed(tree: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with dotted settings set; None removes a setting.

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
