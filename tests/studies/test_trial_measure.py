"""What was measured becomes speeds and a precision; the plan is read as it was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mbsd.config.run_files import DONE
from mbsd.tools.studies.commands import Command
from mbsd.tools.studies.spent import Spent
from mbsd.tools.studies.trial.measure import (
    STEPS,
    folder_of,
    idle_share,
    measuring,
    quicker,
    remove_unfinished,
    seconds_of_step,
    share_of_core,
    speeds,
)
from mbsd.tools.studies.trial.plan import Lengths
from mbsd.tools.studies.trial.recipe import CatalogFacts, Machine, Precision, Recipe, recipe
from mbsd.tools.studies.trial.run import Plan
from tests.studies.test_runner import runner

FACTS = CatalogFacts(
    18_000, 65, dict.fromkeys(("stage1", "classification", "attributes"), 14_000), {"classification": 1800}
)
RECIPES: dict[Precision, Recipe] = {name: recipe(FACTS, Machine(2, 1, name), 60, 2) for name in ("fp32", "bf16")}
MACHINE = Machine(2, 1, "fp32")
RATES = {"stage1": 320.0, "classification": 160.0, "attributes": 64.0}  # samples a second


def measured(out: Path, bf16_rate: float, busy: float = 1.0, disk: float = 0.0) -> Spent:
    """A folder as the measurements leave it: the first part of each run is slow, as it warms up.

    On a machine where a process gets `busy` of a core everything takes 1 / busy as long by the clock. Each start waits
    `disk` seconds for its libraries.
    """
    spent = Spent(out / "settings/spent.json")
    runs = [(kind, "fp32", rate) for kind, rate in RATES.items()] + [("classification", "bf16", bf16_rate)]
    for kind, precision, rate in runs:
        folder = folder_of(out, kind, precision)  # type: ignore[arg-type]
        folder.mkdir(parents=True)
        lines = [{"step": 8, "samples_per_s": 1.0, "cpu_cores": 0.1}, {"step": 40, "validation/loss": 2.0}]
        lines += [
            {"step": step, "samples_per_s": busy * rate * factor, "cpu_cores": busy * cores}
            for step, factor, cores in ((16, 1, 1), (24, 0.2, 0.3), (32, 1, 1), (40, 1, 1))
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        seconds = 12.0 + STEPS * RECIPES["fp32"].runs[kind].batch_size / rate  # type: ignore[index]
        spent.add(f"measure_{kind}_{precision}", disk + seconds / busy, seconds)
    spent.add("measure_scores", disk + 17.0 / busy, 17.0)
    return spent


@pytest.mark.parametrize(("bf16_rate", "expected"), [(100.0, "fp32"), (165.0, "fp32"), (240.0, "bf16")])
def test_the_quicker_precision_and_the_speeds_in_it(bf16_rate: float, expected: Precision, tmp_path: Path) -> None:
    spent = measured(tmp_path, bf16_rate)
    precision, compared = quicker(tmp_path, RECIPES)
    assert precision == expected and compared == pytest.approx({"fp32": 32 / 160, "bf16": 32 / bf16_rate})
    found = speeds(tmp_path, RECIPES, Machine(2, 1, precision), spent, scored=1000)
    factor = 160 / bf16_rate if expected == "bf16" else 1.0
    batches = {kind: run.batch_size for kind, run in RECIPES["fp32"].runs.items()}
    assert found.step == pytest.approx({kind: factor * batches[kind] / rate for kind, rate in RATES.items()})
    assert found.start == pytest.approx(12.0) and found.row == pytest.approx(0.005)
    assert seconds_of_step(folder_of(tmp_path, "stage1", "fp32"), 32) == pytest.approx(0.1)


def test_a_busy_machine_is_planned_for_as_an_idle_one(tmp_path: Path) -> None:
    found = [
        speeds(tmp_path / name, RECIPES, MACHINE, measured(tmp_path / name, 100.0, busy), scored=1000)
        for name, busy in (("idle", 1.0), ("busy", 0.125))
    ]
    assert found[0].step == pytest.approx(found[1].step)
    assert (found[0].start, found[0].row) == pytest.approx((found[1].start, found[1].row))


def test_a_machine_that_reads_its_libraries_for_the_first_time_is_not_busy(tmp_path: Path) -> None:
    """Its starts take longer, its steps do not."""
    warm, cold = (
        speeds(tmp_path / name, RECIPES, MACHINE, measured(tmp_path / name, 100.0, disk=disk), scored=1000)
        for name, disk in (("warm", 0.0), ("cold", 20.0))
    )
    assert cold.step == warm.step and cold.row == pytest.approx(warm.row)
    assert (warm.start, cold.start) == (pytest.approx(12), pytest.approx(32))


def test_how_busy_the_machine_was(tmp_path: Path) -> None:
    measured(tmp_path, 100.0, busy=0.4)
    assert idle_share(tmp_path, RECIPES) == pytest.approx(0.4)
    run = folder_of(tmp_path, "stage1", "fp32")
    lines = [{"cpu_cores": cores} for cores in (0.2, 1.7, 1.8)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert share_of_core(run) == 1, "threads and workers: nobody has waited"


def test_a_measurement_that_was_stopped_begins_anew(tmp_path: Path) -> None:
    spent = measured(tmp_path, 240.0)
    expected = speeds(tmp_path, RECIPES, Machine(2, 1, "bf16"), spent, scored=1000)
    settings = {f"{kind}_{precision}": tmp_path / "ds.json" for kind in RATES for precision in RECIPES}
    commands = {command.name: command for command in measuring(tmp_path, RECIPES, settings)}
    for command in commands.values():
        command.done.touch()
    remove_unfinished(commands.values(), spent)
    assert all(command.done.exists() for command in commands.values())

    stopped, killed, scores = (commands[f"measure_{it}"] for it in ("stage1_fp32", "attributes_fp32", "scores"))
    stopped.done.unlink()  # it has saved its state, and what it took is known
    for command in (killed, scores):  # done, and killed with us before what it took was written
        spent.forget(command.name)
    remove_unfinished(commands.values(), spent)
    left = {"measure_classification_fp32", "measure_classification_bf16"}
    assert {name for name, command in commands.items() if command.done.exists()} == left == spent.commands().keys()
    assert not stopped.done.parent.exists() and not killed.done.parent.exists()

    again = tmp_path / "again"
    whole = measured(again, 240.0).commands()
    for command in (stopped, killed):
        folder_of(again, command.name.split("_")[1], "fp32").rename(command.done.parent)  # type: ignore[arg-type]
    for command in (stopped, killed, scores):
        spent.add(command.name, *whole[command.name])
    assert speeds(tmp_path, RECIPES, Machine(2, 1, "bf16"), spent, scored=1000) == expected


def test_stopped_while_it_measures_and_started_again(tmp_path: Path) -> None:
    """As the runner leaves it: two measurements at work, of which one fails and the other is told to end."""

    def commands(seconds: float, code: int) -> list[Command]:
        folders = {name: tmp_path / name for name in ("one", "two")}
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        return [
            Command("one", folders["one"] / DONE, (DONE, folders["one"], 0.5, code), "finetune", after=()),
            Command("two", folders["two"] / DONE, (DONE, folders["two"], seconds, 0), "finetune", after=()),
        ]

    start = runner(tmp_path, 2)
    with pytest.raises(SystemExit):
        start.run(commands(60, 1))
    assert start.spent.commands().keys() == {"one", "two"}
    remove_unfinished(commands(60, 1), start.spent)
    assert not start.spent.commands()
    start.run(commands(0, 0))
    assert start.spent.commands().keys() == {"one", "two"}


def test_both_precisions_are_measured_beside_each_other(tmp_path: Path) -> None:
    settings = {f"{kind}_{precision}": tmp_path / "ds.json" for kind in RATES for precision in RECIPES}
    commands = list(measuring(tmp_path, RECIPES, settings))
    assert [command.name for command in commands[:2]] == ["measure_classification_fp32", "measure_classification_bf16"]
    assert {command.name for command in commands[2:]} == {
        "measure_stage1_fp32", "measure_attributes_fp32", "measure_scores"
    }  # fmt: skip
    assert all(command.after == () for command in commands[:-1])
    assert commands[-1].after == ("measure_classification_fp32",)
    alone = list(measuring(tmp_path, {"fp32": RECIPES["fp32"]}, settings))
    assert not any("bf16" in command.name for command in alone)


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = Plan(["18,000 items", "8.5 minutes: more"], RECIPES["bf16"], Lengths({"stage1": 9}, {"attributes": 0}))
    plan.write(tmp_path / "plan.yaml", {"facts": {"items": 18_000}})
    assert Plan.read(tmp_path / "plan.yaml") == plan
