"""README and docs: links lead somewhere, and the files, settings, options and names that a page mentions exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from mbsd.tools.reference import reference, setting_names, undocumented
from tests.docs.pages import PAGES, PROGRAMS, blocks, commands, in_line, leaves, name_of, options, text_of
from tests.ranks import ROOT

MOST_LINES = 200  # of the README
# Options that are other programs'.
FOREIGN = {
    "--signal": "sbatch and scancel", "--no_local_rank": "deepspeed", "--num_accelerators": "deepspeed",
    "--hostfile": "deepspeed", "--standalone": "torchrun", "--nproc-per-node": "torchrun",
    "--ntasks-per-node": "srun", "--gpus-per-node": "srun", "--gpus-per-task": "srun",
    "--logdir": "tensorboard", "--write-golden": "pytest",
    "--config": "launchers", "--deepspeed_config": "launchers",
}  # fmt: skip
# First words of a python block -> the test that runs it.
PYTHON_RUN_BY = {
    "from mbsd.inference import Encoder": "tests/tasks/test_vectors.py::test_the_pages_python",
    'encoder = Encoder.load("runs/contrastive")': "tests/tasks/test_contrastive_vectors.py::"
    "test_the_pages_python_about_contrastive_models",
    "import mbsd ": "tests/tasks/test_vectors.py::test_the_pages_python",
    "from typing import Any\n\nfrom mbsd.batch": "tests/stages/test_own_stage.py::"
    "test_a_stage_of_a_few_lines_is_trained_by_the_launcher",
}

every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def test_the_reference_of_settings_is_what_the_dataclasses_hold() -> None:
    written = text_of(ROOT / "docs" / "configuration.md")
    assert written == reference(), "docs/configuration.md is out of date: `make docs` writes it anew"


def test_every_setting_is_explained() -> None:
    assert undocumented() == [], "each setting has a text below its field"


def test_the_readme_is_short() -> None:
    assert len(text_of(ROOT / "README.md").splitlines()) <= MOST_LINES


def test_every_page_of_docs_is_linked() -> None:
    linked = {target for page in PAGES for target in re.findall(r"\]\((?:docs/)?([\w.]+\.md)", text_of(page))}
    assert {page.name for page in (ROOT / "docs").iterdir()} <= linked


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            there = page.parent / path if path else page
            assert there.exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.*)$", text_of(there), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, target


@every_page
def test_files_that_are_named_exist(page: Path) -> None:
    for code in in_line(page):
        for name in re.findall(r"^(?:launchers|ds_configs|tests|mbsd|docs)/[\w./-]+$", code):
            assert name == "launchers/X.py" or (ROOT / name).exists(), name
        for name in re.findall(r"^(?:cpu|h100|v100)\w*\.json$", code):
            assert (ROOT / "ds_configs" / name).exists(), name
        for name in re.findall(r"^\w+\.yaml$", code):
            assert name == "config.yaml" or (ROOT / "launchers" / "configs" / name).exists(), name
        for name, _, symbol in re.findall(r"^(\w+/\w+\.py)(:(\w+)(?:\.\w+)*)?$", code):
            if not name.startswith(("launchers/", "tests/", "mbsd/")):
                assert (ROOT / "mbsd" / name).exists(), name
                module = (ROOT / "mbsd" / name).read_text(encoding="utf-8")
                assert not symbol or re.search(rf"^(?:class |def ){symbol}\b", module, re.MULTILINE), code


@every_page
def test_settings_that_are_named_exist(page: Path) -> None:
    known = setting_names()
    sections = "run|data|model|masking|sdmi|task|best|missing|clustering|launch"
    for code in in_line(page):
        for name in re.findall(rf"^(?:--)?((?:{sections})\.(?!py$)[a-z_]+)(?:[:= ].*)?$", code):
            assert name in known or name == "model.onnx", f"{name}: {code}"


@every_page
def test_options_that_are_named_exist(page: Path) -> None:
    by_command = {name: options(command) for top, program in PROGRAMS.items() for name, command in leaves(program, top)}
    somewhere = set().union(*by_command.values()) | FOREIGN.keys()
    for code in in_line(page):
        command = next((name for name in by_command if code.startswith(f"{name} ")), None)
        known = somewhere if command is None else by_command[command]
        for option in re.findall(r"(?<![\w-])--[\w-]+(?![\w.-])", code):
            assert option in known or option[2:] in setting_names(), f"{option}: {code}"


@every_page
def test_python_names_exist(page: Path) -> None:
    for code in in_line(page):
        if re.fullmatch(r"mbsd(\.\w+)+", code):
            path = ROOT.joinpath(*code.split("."))
            if not path.is_dir() and not path.with_suffix(".py").exists():
                module = path.parent.with_suffix(".py").read_text(encoding="utf-8")
                assert re.search(rf"^(?:class |def )?{path.name}\b", module, re.MULTILINE), code


@every_page
def test_a_python_block_is_run_by_a_test(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)
        run_by = next((test for first, test in PYTHON_RUN_BY.items() if block.startswith(first)), None)
        assert run_by is not None, f"name in PYTHON_RUN_BY the test that runs\n{block}"
        file, name = run_by.split("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert f"def {name}(" in text, run_by
        if "blocks(" not in text:  # the test has the block's lines itself
            assert [line for line in block.splitlines() if line.strip() not in text] == []


def test_every_command_is_in_the_docs() -> None:
    """Each command of `mbsd` and each launcher is named somewhere."""
    text = "".join(text_of(page) for page in PAGES)
    for name, _ in leaves(PROGRAMS["mbsd"], "mbsd"):
        assert name in text, name
    for launcher in (ROOT / "launchers").glob("*.py"):
        assert launcher.name in text, launcher.name


def test_options_of_other_programs_are_still_shown() -> None:
    text = "".join(code for page in PAGES for code in in_line(page)) + "".join(shown.text for shown in commands())
    assert [option for option in FOREIGN if option not in text] == []
