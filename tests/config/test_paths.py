"""`~` in a path is the home folder: of every path setting in YAML and on the command line, and of every path option."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from mbsd.cli import grid, main, submit, usage
from mbsd.config.parse import dotted, parse, parse_scoring
from mbsd.config.paths import path_names, section_names, tree_with_home
from mbsd.config.run import BaseConfig, FinetuneConfig, PretrainConfig
from mbsd.config.scoring import EmbedConfig, EvaluateConfig
from mbsd.errors import UserError
from mbsd.io.home import expand_home
from mbsd.tools.studies.settings import AblationConfig, MissingStudyConfig
from tests.conftest import Shop
from tests.settings import write_ds_config

KINDS: list[Any] = [PretrainConfig, FinetuneConfig, EvaluateConfig, EmbedConfig, AblationConfig, MissingStudyConfig]
NO_PATHS = {
    "generative.caption_prompt", "generative.denoising_prompt",
    "stage", "best.metric", "task.positive", "rows", "seeds", "launch.command", "names.templates", "positive",
    "run.mirror",  # a URL
    "sdmi.weight",  # a word or a number
}  # fmt: skip
REQUIRED: dict[Any, dict[str, Any]] = {
    PretrainConfig: {"run.max_steps": 1}, FinetuneConfig: {"run.max_steps": 1}, EvaluateConfig: {}, EmbedConfig: {},
    AblationConfig: {}, MissingStudyConfig: {},
}  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def texts(kind: type, prefix: str = "") -> Iterator[str]:
    """Every setting that may be any text."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        for of_field in (hint, *(typing.get_args(hint) if typing.get_origin(hint) is not dict else ())):
            if isinstance(of_field, type) and dataclasses.is_dataclass(of_field):
                yield from texts(of_field, f"{prefix}{field.name}.")
            elif of_field is str:
                yield f"{prefix}{field.name}"


def nested(values: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in values.items():
        inner = tree
        *sections, last = name.split(".")
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return tree


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_is_a_path_or_known_to_be_none(kind: type) -> None:
    assert set(texts(kind)) - set(path_names(kind)) <= NO_PATHS
    assert set(path_names(kind)) <= set(texts(kind)) and len(set(path_names(kind))) >= 5


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list) else str(value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_path_setting_in_yaml_and_on_the_command_line(kind: Any, home: Path, tmp_path: Path) -> None:
    names = [
        name for name in path_names(kind) if issubclass(kind, BaseConfig) or name != "data.held_out"
    ]  # of training
    given = {name: f"~/{name}.json" for name in names} | REQUIRED[kind]
    lists = {"data.held_out"} & given.keys()
    given |= {name: [f"~/{name}.json"] for name in lists}
    if kind is EmbedConfig:
        del given["data.table"]
    if issubclass(kind, BaseConfig):  # two of them name weights, and of each pair one is allowed
        apart = [{"model.backbone", "run.init_from"}, {"model.image_weights", "run.init_from"}]
        variants = [{n: v for n, v in given.items() if n not in left} for left in ({"run.init_from"},) if apart]
        variants.append({n: v for n, v in given.items() if n not in ("model.backbone", "model.image_weights")})
        if kind is PretrainConfig:
            variants = [{**v, "stage": "matching"} for v in variants]
        for variant in variants:
            if "model.image_weights" in variant:
                variant["model.architecture"] = "kaleido"
    else:
        variants = [given]
    seen = set()
    for variant in variants:
        file = tmp_path / "settings.yaml"
        file.write_text(yaml.safe_dump(nested(variant)), encoding="utf-8")
        for words in (["--config", str(file)], [f"--{name}={_shown(value)}" for name, value in variant.items()]):
            if issubclass(kind, BaseConfig):
                ds = write_ds_config(home)
                config: Any = parse(kind, [*words, f"--deepspeed_config=~/{ds.name}"])[0]
            else:
                config = parse_scoring(kind, words)
            found = dict(dotted(dataclasses.asdict(config)))
            for name in set(names) & variant.keys():
                expanded = str(home / f"{name}.json")
                assert found[name] == ((expanded,) if name in lists else expanded), name
                seen.add(name)
    assert seen == set(names) - ({"data.table"} if kind is EmbedConfig else set())


def test_settings_that_a_study_reads_itself(home: Path) -> None:
    tree = {"run": {"dir": "~/x", "seed": 1}, "data": {"catalog": "~/c", "table": None}, "model": "~/odd", "out": "~/o"}
    expanded = tree_with_home(tree, PretrainConfig)
    assert expanded == {**tree, "run": {"dir": f"{home}/x", "seed": 1}, "data": {"catalog": f"{home}/c", "table": None}}
    assert "data" in set(section_names(PretrainConfig))


def commands() -> Iterator[tuple[str, Any]]:
    """Every command of `mbsd`, launchers/grid.py and submit.py, by its words."""
    for app in (main.app, grid.app, submit.app):
        pending: list[tuple[tuple[str, ...], Any]] = [((), typer.main.get_command(app))]
        while pending:
            words, found = pending.pop()
            if hasattr(found, "commands"):
                pending += [((*words, name), command) for name, command in found.commands.items()]
            else:
                yield " ".join(words), found


def test_every_path_argument_and_option(home: Path) -> None:
    """As `run_app` hands the words on: in a word of their own and behind an option's equals sign."""
    checked = 0
    for name, command in commands():
        words, expected, hints = [], set(), typing.get_type_hints(command.callback)
        for n, parameter in enumerate(command.params):
            hint = hints.get(parameter.name)
            is_path = Path in (hint, *typing.get_args(hint))
            if not (is_path or parameter.required):
                continue
            choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
            value = f"~/{n}" if is_path else str((*choices, 1)[0])
            if is_path:
                expected.add(str(home / str(n)))
            option = next((word for word in parameter.opts if word.startswith("--")), None)
            words += [value] if option is None else [f"{option}={value}"] if n % 2 else [option, value]
        context = command.make_context(name, usage.expand_words(words), resilient_parsing=False)
        values = context.params.values()
        flat = {str(v) for value in values for v in (value if isinstance(value, list | tuple) else [value])}
        assert expected <= flat, f"{name}: {expected - flat}"
        checked += len(expected)
    assert checked > 40


def test_the_words_of_a_command_are_expanded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app, seen = typer.Typer(), []

    @app.command()
    def only(first: str, log: str = "", out: Path = Path(".")) -> None:
        seen.extend([first, log, str(out)])

    monkeypatch.setattr(sys, "argv", ["mbsd", "~/shop/items[1].jsonl", "--log=~/log", "--out", "~"])
    usage.run_app(app, "mbsd --help")
    assert seen == [f"{home}/shop/items[1].jsonl", f"{home}/log", str(home)]


def test_what_is_no_home_stays(home: Path) -> None:
    assert [expand_home(text) for text in ("a~", "./~/x", "~5", "", "a/~")] == ["a~", "./~/x", "~5", "", "a/~"]
    assert expand_home("~root/x") == os.path.expanduser("~root/x") != "~root/x"
    with pytest.raises(UserError, match="no user nobody-here"):
        expand_home("~nobody-here/x")


def test_a_path_behind_a_taggers_kind(home: Path, shop: Shop) -> None:
    from mbsd.catalog.mining.model_tagger import make_tagger
    from mbsd.catalog.reader import Catalog

    with pytest.raises(UserError, match=f"tagger {home / 'model'}: no readable config.json"):
        make_tagger("transformers:~/model", Catalog(shop.catalog))


def test_the_encoder_and_its_pictures(home: Path, tmp_path: Path) -> None:
    from mbsd.inference import Encoder, _bytes_of

    with pytest.raises(UserError, match=str(home / "model")):
        Encoder.load("~/model")
    home.mkdir(exist_ok=True)
    (home / "picture.jpg").write_bytes(b"jpeg")
    assert _bytes_of("~/picture.jpg") == b"jpeg"
