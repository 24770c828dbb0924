"""README and docs: what they show is what there is. Commands parse, and each is run by a test or named as one that
cannot be; links lead somewhere; the reference of settings is what the dataclasses hold."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from mbsd.cli.grid import app as grid_app
from mbsd.cli.main import app
from mbsd.cli.submit import app as submit_app
from mbsd.config.parse import parse, parse_scoring
from mbsd.config.run import FinetuneConfig, PretrainConfig
from mbsd.config.scoring import EmbedConfig, EvaluateConfig
from mbsd.tools.reference import reference
from mbsd.tools.studies.settings import AblationConfig, MissingStudyConfig
from tests.conftest import Shop
from tests.ranks import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "data" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
MOST_LINES = 200  # of the README

GRID = "tests/studies/test_studies.py::test_a_killed_grid_goes_on_and_names_the_best_by_validation"
# First words of a command (a launcher is "PROGRAM launchers/X.py") -> the test that runs it.
RUN_BY = {
    "make demo": "tests/smoke/test_demo.py::test_the_demo",
    "make test": ".ci/run",
    "make check": ".ci/run",
    "mbsd catalog build": "tests/catalog/test_hostile.py::test_a_folder_of_hostile_files",
    "mbsd catalog inspect": "tests/docs/test_docs.py::test_a_catalogue_is_inspected",
    "mbsd tables build": "tests/catalog/test_tables.py::test_build_from_tsv",
    "mbsd tables derive": "tests/studies/test_trial.py::test_a_trial",
    "mbsd pairs mine": "tests/catalog/test_mining_input.py::test_the_command",
    "mbsd checkpoint list": "tests/checkpoint/test_faults.py::test_list_and_verify",
    "mbsd checkpoint verify": "tests/checkpoint/test_faults.py::test_list_and_verify",
    "mbsd export": "tests/checkpoint/test_export.py::test_a_half_precision_run_leaves_in_float32",
    "mbsd floors": "tests/studies/test_trial.py::test_a_trial",
    "mbsd plan": "tests/plan/test_plan.py::test_the_papers_setting",
    "mbsd report": "tests/tasks/test_report.py::test_the_papers_tables",
    "mbsd trial": "tests/studies/test_trial.py::test_a_trial",
    "mbsd bench lamb": "tests/bench/test_ranks.py::test_lamb",
    "mbsd bench checkpoint": "tests/bench/test_ranks.py::test_checkpoint",
    "mbsd bench loader": "tests/bench/test_loader.py::test_every_way_is_measured",
    "mbsd bench mining": "tests/bench/test_mining.py::test_the_command",
    "mbsd bench latency": "tests/bench/test_latency.py::test_the_command",
    "mbsd bench step": "tests/bench/test_step.py::test_a_table_of_everything",
    "deepspeed launchers/pretrain.py": "tests/training/test_runs.py::test_two_ranks_learn_what_one_rank_learns",
    "deepspeed launchers/finetune.py": "tests/smoke/test_demo.py::test_the_demo",
    "deepspeed launchers/evaluate.py": "tests/smoke/test_demo.py::test_the_demo",
    "deepspeed launchers/embed.py": "tests/tasks/test_vectors.py::test_one_row_an_item_in_the_catalogues_order",
    "torchrun launchers/pretrain.py": "tests/slurm/test_launch.py::test_every_launcher_gives_the_same_losses",
    "srun launchers/pretrain.py": "tests/slurm/test_launch.py::test_every_launcher_gives_the_same_losses",
    "mpirun launchers/pretrain.py": "tests/slurm/test_launch.py::test_every_launcher_gives_the_same_losses",
    "python launchers/submit.py": "tests/slurm/test_story.py::test_what_was_submitted_is_written_down",
    "python launchers/grid.py": GRID,
    "python launchers/ablation.py": "tests/studies/test_studies.py::test_a_killed_ablation_goes_on",
    "python launchers/missing.py": "tests/studies/test_studies.py::test_missing_shares_the_runs_that_are_there",
}
# What no test can run as it is shown, by words of the command: its line is parsed here, and the test of RUN_BY runs the
# same command with small settings on CPUs.
CANNOT_RUN = {
    "ds_configs/h100_finetune.json": "needs an H100",
    "ds_configs/h100x8_stage1.json": "needs 8 H100",
    "ds_configs/v100x16_stage1.json": "needs 16 V100",
    "ds_configs/v100x16_stage2.json": "needs 16 V100",
    "launchers/configs/ablation.yaml": "48 runs on GPUs",
    "launchers/configs/missing.yaml": "runs on GPUs",
    "launchers/configs/small_missing.yaml": "takes half an hour of two cores",
    "launchers/configs/evaluate.yaml": "reads a model that was trained on GPUs",
    "launchers/configs/embed.yaml": "reads a model that was trained on GPUs",
    "--engine spark": "reads a shop's own log",
    "pytest -m gpu": "needs a CUDA device",
}
LAUNCHERS: dict[str, Any] = {
    "pretrain": PretrainConfig, "finetune": FinetuneConfig, "evaluate": EvaluateConfig, "embed": EmbedConfig,
    "ablation": AblationConfig, "missing": MissingStudyConfig,
}  # fmt: skip


class Shown(NamedTuple):
    """A command as a page shows it."""

    page: str
    words: list[str]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def key(self) -> str:
        """What `RUN_BY` has it under."""
        launcher = next((word for word in self.words if word.startswith("launchers/") and word.endswith(".py")), None)
        if launcher is not None:
            return f"{self.words[0]} {launcher}"
        return next((key for key in RUN_BY if self.text.startswith(key)), self.text)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> Iterator[Shown]:
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                    del words[0]  # the environment
                if words:
                    yield Shown(page.name, words)


COMMANDS = list(commands())


@pytest.mark.parametrize("shown", COMMANDS, ids=lambda shown: f"{shown.page}: {shown.text[:60]}")
def test_a_command_that_is_shown_parses_and_is_run_by_a_test(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert shown.key in RUN_BY, f"{shown.page} shows `{shown.text}`: name in RUN_BY the test that runs it"
    file, _, name = RUN_BY[shown.key].partition("::")
    text = (ROOT / file).read_text(encoding="utf-8")
    assert f"def {name}(" in text if name else shown.text.split("#")[0].strip() in text, RUN_BY[shown.key]
    _parse(shown.words)


def _parse(words: list[str]) -> None:
    """As the program itself would, without running it; a wrong option or setting raises."""
    launcher = next((n for n, word in enumerate(words) if re.fullmatch(r"launchers/\w+\.py", word)), None)
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
    elif words[0] == "mbsd":
        _parse_typer(typer.main.get_command(app), words[1:])
    else:
        assert launcher is not None, words
        name, rest = Path(words[launcher]).stem, words[launcher + 1 :]
        if name in ("grid", "submit"):
            command = typer.main.get_command(grid_app if name == "grid" else submit_app)
            extra = _parse_typer(command, rest)
            parse(PretrainConfig if "pretrain" in rest else FinetuneConfig, extra)
        elif name in ("pretrain", "finetune"):
            parse(LAUNCHERS[name], rest)
        else:
            parse_scoring(LAUNCHERS[name], rest)


def _parse_typer(command: Any, words: list[str]) -> list[str]:
    """Parse a command line down to its last command; returns what that leaves to another parser."""
    rest = list(words)
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    with command.make_context(command.name, rest) as context:
        left: list[str] = list(context.args)
    return left


def test_what_cannot_be_run_is_still_shown() -> None:
    for words, reason in CANNOT_RUN.items():
        shown = [page.name for page in PAGES if words in page.read_text(encoding="utf-8")]
        assert shown, f"CANNOT_RUN: nothing shows `{words}` ({reason}) any more; remove the entry"
    for file in sorted((ROOT / "ds_configs").glob("[!c]*.json")):
        named = [shown for shown in COMMANDS if f"ds_configs/{file.name}" in shown.words]
        assert not named or f"ds_configs/{file.name}" in CANNOT_RUN, file.name


def test_the_reference_of_settings_is_what_the_dataclasses_hold() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == reference(), "docs/configuration.md is out of date: `make docs` writes it anew"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#][^)]*)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            there = page.parent / path
            assert there.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:launchers|ds_configs|tests|mbsd|docs)/[\w./-]+)`", text):
        assert name == "launchers/X.py" or (ROOT / name).exists(), f"{page.name}: {name}"
    for name in re.findall(r"`(\w+\.json)`", text):
        if name.startswith(("cpu_", "h100", "v100")):
            assert (ROOT / "ds_configs" / name).exists(), f"{page.name}: {name}"
    for name in re.findall(r"`(\w+\.yaml)`", text):
        if name != "config.yaml":
            assert (ROOT / "launchers" / "configs" / name).exists(), f"{page.name}: {name}"


def test_every_command_is_in_the_docs() -> None:
    """Each command of `mbsd` and each launcher is named somewhere."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in _names(typer.main.get_command(app), "mbsd"):
        assert name in text, name
    for launcher in (ROOT / "launchers").glob("*.py"):
        assert launcher.name in text, launcher.name


def _names(command: Any, name: str) -> Iterator[str]:
    if not hasattr(command, "commands"):
        yield name
        return
    for below, one in command.commands.items():
        yield from _names(one, f"{name} {below}")


def test_a_catalogue_is_inspected(shop: Shop) -> None:
    words = [sys.executable, "-m", "mbsd.cli", "catalog", "inspect", str(shop.catalog)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert '"items": 240' in done.stdout
