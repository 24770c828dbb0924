"""Reading the evaluations that `launchers/evaluate.py` wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbsd.errors import UserError

SEED = re.compile(r"(^|[-_])seed[-_]?\d+$")
MEANT = "name run folders with the JSON files of launchers/evaluate.py in them, or such files"


@dataclass(frozen=True)
class Evaluation:
    """One evaluated run.

    Attributes:
        name: of the model: the run folder's name without a trailing seed, so that runs differing in seed share it.
        file: the JSON file that was read.
        run: the run folder; None: the file is in none.
        task, split, samples, catalog, table: as in the file; of several catalogues, name -> path.
        views: view -> {"all": metrics, "interval": their 95 % intervals, and metrics of groups}.
        missing: which input is missing, and how often -> the same.
        answers: Parquet file of the rows' answers; None: none were written.
        answers_sha256: its checksum when it was written; "": an older version recorded none.
        vector: which vectors were measured; "": the answers of a head were.
    """

    name: str
    file: Path
    run: Path | None
    task: str
    split: str
    samples: int
    catalog: str | dict[str, str]
    table: str | None
    views: dict[str, Any]
    missing: dict[str, Any]
    answers: Path | None
    answers_sha256: str = ""
    vector: str = ""

    @property
    def dataset(self) -> str:
        """Name of the evaluated table, or of the catalogue where no table is read: data sets of one task."""
        if self.table is not None:
            return Path(self.table).stem
        return Path(self.catalog).name if isinstance(self.catalog, str) else "+".join(self.catalog)


def read_evaluations(paths: Sequence[Path]) -> list[Evaluation]:
    """The evaluations in run folders, in folders of run folders and in JSON files, in this order, each once.

    Raises:
        UserError: a path does not exist or holds no evaluation.
    """
    found: dict[Path, Evaluation] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; {MEANT}")
        of_path = [_read(path, strict=True)] if path.is_file() else [_read(file) for file in _files(path)]
        known = [evaluation for evaluation in of_path if evaluation is not None]
        if not known:
            raise UserError(
                f"{path}: no evaluation in it; score the run with launchers/evaluate.py, --out in its folder"
            )
        found |= {evaluation.file.resolve(): evaluation for evaluation in known}
    return list(found.values())


def _files(folder: Path) -> Iterator[Path]:
    """JSON files of a run folder, or of all runs below a folder."""
    yield from sorted(folder.glob("*.json"))
    if not (folder / "config.yaml").exists():
        for below in sorted(path for path in folder.iterdir() if path.is_dir()):
            yield from _files(below)


def _read(file: Path, strict: bool = False) -> Evaluation | None:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not a JSON file ({error}); {MEANT}") from None
    wanted = {"model", "task", "split", "samples", "catalog", "table", "views", "missing"}
    if not isinstance(values, dict) or not wanted <= set(values):
        if strict:
            raise UserError(f"{file}: no evaluation, it lacks {_missing(values, wanted)}; {MEANT}")
        return None
    run = next((folder for folder in file.resolve().parents if (folder / "config.yaml").exists()), None)
    answers = file.with_suffix(".parquet")
    model = run.name if run is not None else Path(values["model"]).name
    if run is not None and SEED.fullmatch(model):  # runs/attributes/seed-2
        model = run.parent.name
    return Evaluation(
        name=SEED.sub("", model),
        file=file,
        run=run,
        answers=answers if answers.exists() else None,
        answers_sha256=values.get("answers_sha256", ""),
        vector=values.get("vector", ""),
        **{name: values[name] for name in wanted - {"model"}},
    )


def _missing(values: Any, wanted: set[str]) -> str:
    return ", ".join(sorted(wanted - set(values))) if isinstance(values, dict) else "all of its keys"
