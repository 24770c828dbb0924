"""The command line of a launcher -> a checked config and DeepSpeed's JSON.

One home for each setting: batch size, precision, ZeRO, optimizer and schedule are DeepSpeed's JSON; data, model,
objective and run folder are the YAML. The same fact in both is an error that names both places.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jsonargparse
import yaml

from mbsd.config.deepspeed import DeepSpeedConfig, read_deepspeed
from mbsd.config.paths import section_names, with_home
from mbsd.config.run import BaseConfig
from mbsd.errors import UserError
from mbsd.io.home import expand_home
from mbsd.io.settings_text import read_text, read_yaml, refuse_keys_twice

C = TypeVar("C", bound=BaseConfig)


class Checked(Protocol):
    """Settings that check themselves."""

    def check(self) -> None:
        """Raise UserError if they contradict each other."""


S = TypeVar("S", bound=Checked)

# What DeepSpeed's JSON owns: a YAML key of one of these names is in the wrong file.
DEEPSPEED_KEYS = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "optimizer", "scheduler", "fp16", "bf16", "torch_autocast", "zero_optimization", "communication_data_type",
}  # fmt: skip
DEEPSPEED_SYNONYMS = {
    "batch_size": "train_batch_size", "micro_batch_size": "train_micro_batch_size_per_gpu", "lr": "optimizer",
    "learning_rate": "optimizer", "weight_decay": "optimizer", "betas": "optimizer", "warmup_steps": "scheduler",
    "warmup_num_steps": "scheduler", "total_num_steps": "scheduler", "precision": "fp16",
    "zero_stage": "zero_optimization", "grad_clip": "gradient_clipping",
}  # fmt: skip


def parse(
    config_class: type[C], argv: Sequence[str] | None = None, *, ds_default: DeepSpeedConfig | None = None
) -> tuple[C, DeepSpeedConfig]:
    """Read `--config X.yaml --deepspeed_config Y.json --section.key VALUE …` into a checked config and the JSON.

    Args:
        argv: default: the process's own.
        ds_default: what stands for the JSON where none is named; None: one must be named.

    Raises:
        UserError: an unknown key, a value of the wrong type, a contradiction, or a fact that both files state.
    """
    with _on_every_rank():
        namespace = _parse(config_class, argv, with_deepspeed=True)
        path = namespace.pop("deepspeed_config")
        if path is None and ds_default is None:
            raise UserError("--deepspeed_config is missing: name DeepSpeed's JSON, say ds_configs/cpu_stage1.json")
        config: C = _instantiate(config_class, namespace)
        config.check()
        if path is None:
            assert ds_default is not None
            return config, ds_default
        given = read_deepspeed(Path(path))
        given.check()
        _refuse_shared_facts(config, given)
    return config, given


def parse_scoring(config_class: type[S], argv: Sequence[str] | None = None) -> S:
    """Read the command line of a launcher that trains nothing: no DeepSpeed JSON."""
    with _on_every_rank():
        config: S = _instantiate(config_class, _parse(config_class, argv, with_deepspeed=False))
        config.check()
    return config


@contextmanager
def _on_every_rank() -> Iterator[None]:
    """All ranks read the same command line and files, so all raise the same error, and rank 0 prints it."""
    try:
        yield
    except UserError as error:
        error.shared = True
        raise


def _parse(config_class: type, argv: Sequence[str] | None, with_deepspeed: bool) -> dict[str, Any]:
    parser = jsonargparse.ArgumentParser(exit_on_error=False, description=config_class.__doc__)
    parser.add_argument("--config", action="config", help="YAML file; later options override it")
    if with_deepspeed:
        parser.add_argument("--deepspeed_config", type=str | None, help="DeepSpeed's own JSON")
    # DeepSpeed's launcher adds it to every rank's command line; the environment has the same.
    parser.add_argument("--local_rank", type=int | None, help="ignored: taken from the environment")
    parser.add_class_arguments(config_class)
    files = {"config", "deepspeed_config", *section_names(config_class)}
    words = _with_home(sys.argv[1:] if argv is None else argv, files)
    _refuse_deepspeed_keys(words)
    try:
        texts = _with_texts(words, files - {"deepspeed_config"})
        namespace = parser.parse_args(_with_brackets(texts, set(_list_names(config_class))))
    except jsonargparse.ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from error
    values = vars(parser.instantiate(namespace))
    values.pop("local_rank")
    values.pop("config")
    return dict(values)


def _with_home(words: Sequence[str], names: Collection[str]) -> list[str]:
    """The words with `~` expanded where a settings file is named; paths among the settings are expanded when read."""
    read = list(words)
    for at, option, value in _values(words, names):
        read[at] = option + expand_home(value)
    return read


def _with_texts(words: Sequence[str], names: Collection[str]) -> list[str]:
    """The words, with the settings of each file in its place: jsonargparse reads in the locale's encoding.

    Files are those of `--config`, and where one is named in place of a whole section, as `--data data.yaml`.
    """
    read = list(words)
    for at, option, value in _values(words, names):
        path = Path(value)
        if words[at - 1] == "--config" or option == "--config=" or os.path.isfile(value):
            read_yaml(path)  # refuses what is wrong, by the file's name
            # In ASCII: jsonargparse asks the system whether this is a path, and a locale may lack what is in it.
            read[at] = option + yaml.safe_dump(_load_yaml(read_text(path)) or {}, default_style='"')
    return read


def _with_brackets(words: Sequence[str], names: Collection[str]) -> list[str]:
    """The words with `text,image` where a list is expected written as `[text,image]`, as YAML has it."""
    read = list(words)
    for at, option, value in _values(words, names):
        if re.fullmatch(r"[\w.]+(,[\w.]+)*", value):
            read[at] = f"{option}[{value}]"
    return read


def _list_names(settings: type, prefix: str = "") -> Iterator[str]:
    """The dotted names of the settings that are lists and nothing else, in a dataclass and in those inside it."""
    for name, hint in typing.get_type_hints(settings).items():
        if typing.get_origin(hint) is tuple:
            yield f"{prefix}{name}"
        elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _list_names(hint, f"{prefix}{name}.")


def _values(words: Sequence[str], names: Collection[str]) -> Iterator[tuple[int, str, str]]:
    """Where the value of each of these options stands: index, `--name=` where it is in the same word, and the value."""
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.startswith("--") and name[2:] in names and (equals or index + 1 < len(words)):
            yield (index, f"{name}=", value) if equals else (index + 1, "", words[index + 1])


_load_yaml = jsonargparse.get_loader("yaml")


def _load_once(text: str) -> Any:
    """jsonargparse's YAML loader keeps the last of two equal keys, also in `--data='{"catalog": …}'`."""
    tree = _load_yaml(text)
    if isinstance(tree, dict | list):
        refuse_keys_twice(text, "the command line")  # files were checked before, by their names
    return tree


jsonargparse.set_loader("yaml", _load_once, exceptions=(yaml.YAMLError,))


def _instantiate(config_class: Any, values: dict[str, Any]) -> Any:
    return with_home(config_class(**{f.name: values[f.name] for f in dataclasses.fields(config_class)}))


def _refuse_deepspeed_keys(words: Sequence[str]) -> None:
    """A DeepSpeed setting in the YAML or among the overrides: name both places."""
    options = dict(_options(words))
    ds_path = options.get("deepspeed_config", "DeepSpeed's JSON")
    found = [(name, "the command line") for name, _ in _options(words)]
    for path in (value for name, value in _options(words) if name == "config"):
        found += [(name, path) for name, _ in dotted(read_yaml(Path(path)))]
    for name, where in found:
        parts = name.split(".")
        for n, part in enumerate(parts, 1):
            home = part if part in DEEPSPEED_KEYS else DEEPSPEED_SYNONYMS.get(part)
            if home is not None:
                key = ".".join(parts[:n])
                raise UserError(f"{where}: {key} is DeepSpeed's setting {home}: set it in {ds_path}, not in {where}")


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """`--name value` and `--name=value` of a command line."""
    for index, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            following = words[index + 1] if index + 1 < len(words) else ""
            yield name, value if equals else following


def _refuse_shared_facts(config: BaseConfig, ds_config: DeepSpeedConfig) -> None:
    """The same fact in DeepSpeed's JSON and in the YAML is an error that names both places."""
    tree, path = ds_config.tree, ds_config.path
    steps = (tree.get("scheduler") or {}).get("params", {}).get("total_num_steps", "auto")
    if steps != "auto":
        home = "run.max_steps" if config.run.max_steps is not None else "run.epochs"
        raise UserError(
            f'{path}: scheduler.params.total_num_steps={steps} says again what {home} says: write "auto" there'
        )


def to_yaml(config: Any) -> str:
    """The resolved config as YAML that `--config` reads back; settings that are None are left out."""
    return str(yaml.safe_dump(json.loads(json.dumps(_without_none(dataclasses.asdict(config)))), sort_keys=False))


def dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested settings as ("section.key", value), in order; an empty section is a leaf."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def expand(text: str, option: str) -> tuple[int, ...]:
    """`0-3,7` -> (0, 1, 2, 3, 7), in rising order and without repetition.

    Raises:
        UserError: the text is no such list; it names `option`.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise UserError(f"{option} {text}: expected numbers and ranges such as 0-3,7")
        numbers.update(range(int(found[1]), int(found[2] or found[1]) + 1))
    return tuple(sorted(numbers))


def _without_none(tree: dict[str, Any]) -> dict[str, Any]:
    return {k: _without_none(v) if isinstance(v, dict) else v for k, v in tree.items() if v is not None}
