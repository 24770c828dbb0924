"""README and docs: every command that a page shows parses, and is run by a test or named as one that cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mbsd.config.parse import parse, parse_scoring
from mbsd.config.run import FinetuneConfig, PretrainConfig
from mbsd.tools.reference import LAUNCHERS
from tests.conftest import Shop
from tests.docs.pages import PAGES, PROGRAMS, Shown, commands, in_line
from tests.ranks import ROOT

GRID = "tests/studies/test_studies.py::test_a_killed_grid_goes_on_and_names_the_best_by_validation"
# First words of a command (a launcher is "PROGRAM launchers/X.py") -> the test that runs it.
RUN_BY = {
    "make demo": "tests/smoke/test_demo.py::test_the_demo",
    "make test": ".ci/run",
    "make gpu": "tests/bench/test_gpu_check.py::test_make_gpu_finds_out_a_device_that_computes_nothing",
    "make check": ".ci/run",
    "make chaos": "tests/checkpoint/test_chaos.py::test_a_run_survives_twenty_kills",
    "mbsd catalog build": "tests/catalog/test_hostile.py::test_a_folder_of_hostile_files",
    "mbsd catalog merge": "tests/catalog/test_parts.py::test_the_commands",
    "mbsd catalog synth": "tests/smoke/test_demo.py::test_the_demo",
    "mbsd catalog inspect": "tests/docs/test_commands.py::test_a_catalogue_is_inspected",
    "mbsd catalog keys": "tests/catalog/test_near_pictures.py::test_the_command",
    "mbsd catalog twins": "tests/catalog/test_twins.py::test_the_commands",
    "mbsd tables build": "tests/catalog/test_tables.py::test_build_from_tsv",
    "mbsd tables concat": "tests/catalog/test_several.py::test_a_joined_table_has_the_rows_of_each",
    "mbsd tables derive": "tests/studies/test_trial.py::test_a_trial",
    "mbsd tables sample": "tests/catalog/test_sample.py::test_the_command",
    "mbsd pairs mine": "tests/catalog/test_mining_input.py::test_the_command",
    "mbsd pairs derive": "tests/catalog/test_derived_pairs.py::test_the_command",
    "mbsd checkpoint list": "tests/checkpoint/test_faults.py::test_list_and_verify",
    "mbsd checkpoint verify": "tests/checkpoint/test_faults.py::test_list_and_verify",
    "mbsd export": "tests/checkpoint/test_export.py::test_a_half_precision_run_leaves_in_float32",
    "mbsd floors": "tests/studies/test_trial.py::test_a_trial",
    "mbsd vector-floors": "tests/tasks/test_vector_floors.py::test_the_command",
    "mbsd plan": "tests/plan/test_plan.py::test_the_papers_setting",
    "mbsd report": "tests/tasks/test_report.py::test_the_papers_tables",
    "mbsd neighbours": "tests/tasks/test_contrastive_vectors.py::test_a_page_of_neighbours",
    "mbsd trial": "tests/studies/test_trial.py::test_a_trial",
    "mbsd bench lamb": "tests/bench/test_ranks.py::test_lamb",
    "mbsd bench checkpoint": "tests/bench/test_ranks.py::test_checkpoint",
    "mbsd bench catalog": "tests/bench/test_catalog.py::test_the_command",
    "mbsd bench loader": "tests/bench/test_loader.py::test_every_way_is_measured",
    "mbsd bench mining": "tests/bench/test_mining.py::test_the_command",
    "mbsd bench search": "tests/bench/test_search.py::test_search_is_measured",
    "mbsd bench gpu": "tests/bench/test_gpu_check.py::test_make_gpu_finds_out_a_device_that_computes_nothing",
    "mbsd bench latency": "tests/bench/test_latency.py::test_the_command",
    "mbsd bench contrastive": "tests/bench/test_contrastive.py::test_the_command",
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
    "python launchers/compare.py": "tests/studies/test_compare.py::test_a_killed_comparison_goes_on",
    "python launchers/paper.py": "tests/studies/test_compare.py::test_the_paper_on_one_page",
}
# What no test can run as it is shown, by words of the command: its line is parsed here, and the test of RUN_BY runs the
# same command with small settings on CPUs.
CANNOT_RUN = {
    "ds_configs/h100_finetune.json": "needs an H100",
    "ds_configs/h100x8_stage1.json": "needs 8 H100",
    "ds_configs/v100x16_stage1.json": "needs 16 V100",
    "ds_configs/v100x16_stage2.json": "needs 16 V100",
    "ds_configs/v100x16_contrastive.json": "needs 16 V100",
    "launchers/configs/ablation.yaml": "48 runs on GPUs",
    "launchers/configs/missing.yaml": "runs on GPUs",
    "launchers/configs/small_missing.yaml": "takes half an hour of two cores",
    "launchers/configs/compare_small.yaml": "takes hours of two cores, and a catalogue of one's own",
    "--scale small": "takes many hours of two cores",
    "launchers/configs/photos_ablation.yaml": "takes hours of two cores, and a catalogue of one's own",
    "launchers/configs/photos_missing.yaml": "scores the runs of photos_ablation.yaml",
    "launchers/configs/evaluate.yaml": "reads a model that was trained on GPUs",
    "launchers/configs/embed.yaml": "reads a model that was trained on GPUs",
    "--engine spark": "reads a shop's own log",
}
COMMANDS = list(commands())


def key_of(shown: Shown) -> str:
    """What `RUN_BY` has a command under."""
    if shown.launcher is not None:
        return f"{shown.words[0]} {shown.words[shown.launcher]}"
    return next((key for key in RUN_BY if f"{shown.text} ".startswith(f"{key} ")), shown.text)


@pytest.mark.parametrize("shown", COMMANDS, ids=lambda shown: f"{shown.page}: {shown.text[:60]}")
def test_a_command_that_is_shown_parses_and_is_run_by_a_test(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    key = key_of(shown)
    assert key in RUN_BY, f"{shown.page} shows `{shown.text}`: name in RUN_BY the test that runs it"
    file, _, name = RUN_BY[key].partition("::")
    text = (ROOT / file).read_text(encoding="utf-8")
    assert f"def {name}(" in text if name else shown.text in text, RUN_BY[key]
    _parse(shown)


def _parse(shown: Shown) -> None:
    """As the program itself would, without running it; a wrong option or setting raises."""
    words = shown.words
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
    elif words[0] == "mbsd":
        _parse_typer(PROGRAMS["mbsd"], words[1:])
    else:
        assert shown.launcher is not None, words
        name, rest = Path(words[shown.launcher]).stem, words[shown.launcher + 1 :]
        _parse_start(words[: shown.launcher + 1])
        if name in PROGRAMS:
            extra = _parse_typer(PROGRAMS[name], rest)
            if "catalog" in rest:
                assert _parse_typer(PROGRAMS["mbsd"], ["catalog", "build", *extra]) == []
                return
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


def _parse_start(words: list[str]) -> None:
    """What starts a launcher, up to the launcher itself. srun and mpirun are no Python programs: not parsed."""
    if words[0] == "deepspeed":
        from deepspeed.launcher.runner import parse_args

        assert parse_args(words[1:]).user_script == words[-1]
    elif words[0] == "torchrun":
        from torch.distributed.run import parse_args

        assert parse_args(words[1:]).training_script == words[-1]
    else:
        assert words[0] in ("python", "srun", "mpirun"), words


def test_no_entry_is_stale() -> None:
    """What is no longer shown has no entry, and what asks for GPUs has one."""
    used = {key_of(shown) for shown in COMMANDS}
    assert [key for key in RUN_BY if key not in used] == [], "RUN_BY: nothing shows these any more; remove them"
    text = [shown.text for shown in COMMANDS] + [code for page in PAGES for code in in_line(page)]
    stale = [words for words in CANNOT_RUN if not any(words in one for one in text)]
    assert stale == [], "CANNOT_RUN: nothing shows these any more; remove them"
    for file in (ROOT / "ds_configs").glob("[!c]*.json"):
        named = any(f"ds_configs/{file.name}" in shown.words for shown in COMMANDS)
        assert not named or f"ds_configs/{file.name}" in CANNOT_RUN, file.name


def test_a_catalogue_is_inspected(shop: Shop) -> None:
    words = [sys.executable, "-m", "mbsd.cli", "catalog", "inspect", str(shop.catalog)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert '"items": 240' in done.stdout
