"""Settings files: no key twice, and the same settings in every encoding of Unicode and in every locale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mbsd.config.parse import parse
from mbsd.config.run import PretrainConfig
from mbsd.errors import UserError
from mbsd.io.settings_text import read_json, read_yaml
from tests.ranks import ROOT
from tests.settings import DS_CONFIG

YAML = "run:\n  dir: läufe/跑\n  max_steps: 3\ndata:\n  catalog: 目录\n"
WORDS = ["--run.dir=run", "--run.max_steps=3", "--data.catalog=catalog"]
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def settings(folder: Path, yaml: bytes, ds: bytes | None = None, *words: str) -> PretrainConfig:
    (folder / "run.yaml").write_bytes(yaml)
    (folder / "ds.json").write_bytes(ds if ds is not None else json.dumps(DS_CONFIG).encode())
    given = ["--config", str(folder / "run.yaml"), "--deepspeed_config", str(folder / "ds.json"), *words]
    return parse(PretrainConfig, given)[0]


@pytest.mark.parametrize(
    ("yaml", "named"),
    [
        ("run:\n  dir: a\ndata:\n  catalog: c\nrun:\n  seed: 7\n", "line 5: run is there twice, first in line 1"),
        ("data:\n  image_size: 64\n  image_size: 32\n", "line 3: data.image_size is there twice, first in line 2"),
        ("run.dir: a\nrun:\n  dir: b\n", "line 3: run.dir is there twice, first in line 1"),
        ('"stage": masked\nstage: matching\n', "line 2: stage is there twice, first in line 1"),
    ],
)
def test_a_key_twice_in_yaml(yaml: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        settings(tmp_path, yaml.encode())
    assert str(refused.value) == f"{tmp_path / 'run.yaml'}, {named}; keep one of them"


def test_a_key_twice_on_the_command_line_and_in_the_file_of_a_section(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the command line, line 1: catalog is there twice"):
        settings(tmp_path, b"", None, *WORDS[:2], '--data={"catalog": "a", "catalog": "b"}')
    section = tmp_path / "data.yaml"
    section.write_text("catalog: 目录\nimage_size: 32\n", encoding="utf-16")
    assert settings(tmp_path, b"", None, *WORDS[:2], f"--data={section}").data.catalog == "目录"
    section.write_text("catalog: a\ncatalog: b\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"data.yaml, line 2: catalog is there twice, first in line 1"):
        settings(tmp_path, b"", None, *WORDS[:2], "--data", str(section))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"optimizer": 64,\n "optimizer": 32}', "line 2: optimizer is there twice, first in line 1"),
        ('{"a": {"lr": 1,\n"b": {"lr": 2},\n\n"l\\u0072": 3}}', "line 4: a.lr is there twice, first in line 1"),
        ('[{"a": "b: {", "c": [1, {"d": 1, "d": 2}]}]', "expected a JSON object, found list"),
        ('{"x": "a: {", "c": [{"d": 1}, {"d": 1, "e": 1,\n"d": 2}]}', "line 2: c.d is there twice, first in line 1"),
    ],
)  # fmt: skip
def test_a_key_twice_in_json(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="ds.json") as refused:
        read_json(path)
    assert named in str(refused.value)
    if "twice" in named:
        with pytest.raises(UserError, match="twice"):
            settings(tmp_path, b"", text.encode(), *WORDS)


def test_equal_keys_of_different_mappings_are_none_twice(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("a: &x {c: 1}\nb:\n  <<: *x\n  d: 2\nc: {<<: *x}\nlist: [{e: 1}, {e: 2}]\n", encoding="utf-8")
    assert read_yaml(path) == {"a": {"c": 1}, "b": {"c": 1, "d": 2}, "c": {"c": 1}, "list": [{"e": 1}, {"e": 2}]}
    path.write_text('{"a": {"x": "\\"x\\": 1"}, "b": {"x": [{"x": 1}, {"x": 2}]}, "x": 3}', encoding="utf-8")
    assert read_json(path)["b"] == {"x": [{"x": 1}, {"x": 2}]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_any_encoding_of_unicode_is_read(encoding: str, tmp_path: Path) -> None:
    ds = json.dumps({**DS_CONFIG, "gradient_clipping": 0.5})
    config = settings(tmp_path, YAML.encode(encoding), ds.encode(encoding))
    assert (config.run.dir, config.data.catalog, config.run.max_steps) == ("läufe/跑", "目录", 3)


@pytest.mark.parametrize(("encoding", "line"), [("latin-1", 2), ("gb18030", 2)])
def test_another_encoding_is_one_line(encoding: str, line: int, tmp_path: Path) -> None:
    text = YAML.replace("目录", "c").replace("跑", "x") if encoding == "latin-1" else YAML
    with pytest.raises(UserError, match=rf"run.yaml, line {line}: .*save the file as UTF-8"):
        settings(tmp_path, text.encode(encoding))
    with pytest.raises(UserError, match=r"ds.json, line 1: .*save the file as UTF-8"):
        settings(tmp_path, b"", '{"é": 1}'.encode("latin-1"), *WORDS)


def test_the_kind_of_a_value_survives(tmp_path: Path) -> None:
    """Texts that look like numbers stay texts, and numbers as YAML 1.2 writes them stay numbers."""
    yaml = 'run: {dir: "1e-3", max_steps: 3, timeout: 1e3}\ndata: {catalog: "123", flip_probability: .5}\n'
    config = settings(tmp_path, yaml.encode())
    assert (config.run.dir, config.run.timeout, config.data.catalog) == ("1e-3", 1000.0, "123")
    assert config.data.flip_probability == 0.5


def in_c_locale(folder: Path, yaml: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Reading settings in a process that can neither read nor write anything but ASCII of its own."""
    (folder / "run.yaml").write_text(yaml, encoding="utf-8")
    (folder / "ds.json").write_text(json.dumps(DS_CONFIG), encoding="utf-8")
    program = (
        "from mbsd.config.parse import parse\nfrom mbsd.config.run import PretrainConfig\n"
        "from mbsd.errors import exits_cleanly\n"
        "print(ascii(exits_cleanly(lambda: parse(PretrainConfig)[0].data.catalog)()))"
    )
    given = ["--config", folder / "run.yaml", "--deepspeed_config", folder / "ds.json", *words]
    environment = {**os.environ, **C_LOCALE, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, given)], env=environment, capture_output=True, text=True, timeout=120
    )


def test_a_print_that_the_locale_cannot_write_is_escaped() -> None:
    program = "from mbsd.errors import exits_cleanly\nexits_cleanly(lambda: print('\\u8dd1'))()"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **C_LOCALE, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "\\u8dd1\n"), done.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [("run.yaml", "run: {dir: 2020-13-45}"), ("run.yaml", "[" * 3000), ("ds.json", '{"a": ' + "[" * 100_000),
     ("ds.json", '{"a": ' + "1" * 5000 + "}")],
)  # fmt: skip
def test_what_breaks_a_parser_is_one_line(name: str, text: str, tmp_path: Path) -> None:
    files = {"run.yaml": b"", "ds.json": None} | {name: text.encode()}
    with pytest.raises(UserError, match=name) as refused:
        settings(tmp_path, files["run.yaml"] or b"", files["ds.json"], *WORDS)
    assert len(str(refused.value)) < 600


def test_a_locale_without_unicode(tmp_path: Path) -> None:
    """Comments and texts are read; a path that this process could not open is refused in one line."""
    done = in_c_locale(tmp_path, "# 注释\n" + YAML.replace("läufe/跑", "runs").replace("目录", "catalog"))
    assert (done.returncode, done.stdout) == (0, "'catalog'\n"), done.stderr
    for yaml, words in ((YAML, ()), ("run: {max_steps: 3}\ndata: {catalog: c}\n", ("--run.dir=跑",))):
        done = in_c_locale(tmp_path, yaml, *words)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert "run.dir=" in done.stderr and "PYTHONUTF8=1" in done.stderr
