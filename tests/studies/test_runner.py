"""Commands run in order or beside each other, and a signal or a failure ends them all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from mbsd.tools.studies.commands import Command, LaunchConfig
from mbsd.tools.studies.runner import Runner
from mbsd.tools.studies.spent import Spent
from tests.ranks import ROOT

# A launcher of this test's own: `python -c SCRIPT launchers/X.py NAME FOLDER SECONDS CODE`.
SCRIPT = """
import os, signal, sys, time
_, name, folder, seconds, code = sys.argv[1:]
def end(*_):
    print("told to end", flush=True)
    if os.path.exists(folder + "/" + name + ".ready"):
        open(folder + "/" + name, "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, lambda *_: (time.sleep(1 if name == "b" else 0), print(name, "saved"), sys.exit(0)))
with open(folder + "/order", "a") as file:
    file.write(f"{name} begins {os.environ['OMP_NUM_THREADS']}\\n")
deadline = time.monotonic() + float(seconds)
while time.monotonic() < deadline:
    time.sleep(0.01)
with open(folder + "/order", "a") as file:
    file.write(name + " ends\\n")
if int(code):
    sys.exit(int(code))
open(folder + "/" + name, "w").close()
"""


def made(folder: Path, name: str, seconds: float = 0, code: int = 0, after: tuple[str, ...] | None = None) -> Command:
    return Command(name, folder / name, (name, folder, seconds, code), "finetune", after=after)


def runner(folder: Path, jobs: int) -> Runner:
    (folder / "out").mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(SCRIPT)
    launch = LaunchConfig(f"{sys.executable} -S {script}", cpu_ranks=1)
    spent = Spent(folder / "out/settings/spent.json")
    return Runner(Console(soft_wrap=True), folder / "out/logs", launch, spent, jobs)


def begun(folder: Path, **seconds: float) -> subprocess.Popen[str]:
    """Two jobs of the commands of these names, once two are at work; in a process group of its own."""
    program = (
        "import sys; from pathlib import Path; from tests.studies.test_runner import made, runner\n"
        "folder = Path(sys.argv[1])\n"
        f"runner(folder, 2).run([made(folder, name, long, after=()) for name, long in {seconds}.items()])"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (folder / "order").exists() or len(order(folder)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return started


def order(folder: Path) -> list[str]:
    return [" ".join(line.split()[:2]) for line in (folder / "order").read_text().splitlines()]


def test_one_at_a_time_in_order(tmp_path: Path) -> None:
    runner(tmp_path, 1).run([made(tmp_path, name) for name in "abc"])
    assert order(tmp_path) == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]
    (tmp_path / "b").unlink()
    runner(tmp_path, 1).run([made(tmp_path, name) for name in "abc"])
    assert order(tmp_path)[6:] == ["b begins", "b ends"]


def test_what_does_not_depend_on_each_other_runs_beside_each_other(tmp_path: Path) -> None:
    commands = [
        made(tmp_path, "a", 1.0, after=()), made(tmp_path, "b", after=("a",)), made(tmp_path, "c", 0.1, after=()),
        made(tmp_path, "d"),
    ]  # fmt: skip
    runner(tmp_path, 2).run(commands)
    found = order(tmp_path)
    assert set(found[:2]) == {"a begins", "c begins"} and found[2] == "c ends"
    assert found[3:] == ["a ends", "b begins", "b ends", "d begins", "d ends"], "d waits for all before it"
    spent = json.loads((tmp_path / "out/settings/spent.json").read_text())["commands"]
    assert set(spent) == set("abcd") and spent["a"][0] >= 1.0 > spent["c"][1] > 0


def test_a_failure_ends_the_others(tmp_path: Path) -> None:
    commands = [made(tmp_path, "a", 60, after=()), made(tmp_path, "b", 0.5, 2, after=()), made(tmp_path, "c")]
    began = time.monotonic()
    with pytest.raises(SystemExit) as end:
        runner(tmp_path, 2).run(commands)
    assert end.value.code == 2 and time.monotonic() - began < 30
    assert "told to end" in (tmp_path / "out/logs/a.log").read_text()
    assert order(tmp_path)[2:] == ["b ends"]


def test_a_signal_ends_all_and_starts_no_more(tmp_path: Path) -> None:
    started = begun(tmp_path, a=60, b=60, c=0)
    started.send_signal(signal.SIGTERM)
    said, _ = started.communicate(timeout=60)
    assert started.returncode == 1 and "was stopped; the same command resumes it" in said, said
    for name in "ab":
        assert "told to end" in (tmp_path / f"out/logs/{name}.log").read_text()
    assert len(order(tmp_path)) == 2
    took = Spent(tmp_path / "out/settings/spent.json").commands()
    assert took.keys() == {"a", "b"} and all(seconds > 0 for seconds, _ in took.values()), "of each that was stopped"


def test_ctrl_c_lets_each_save(tmp_path: Path) -> None:
    started = begun(tmp_path, a=60, b=60, c=0)
    os.killpg(started.pid, signal.SIGINT)
    said, _ = started.communicate(timeout=60)
    assert started.returncode == 1 and "was stopped; the same command resumes it" in said, said
    for name in "ab":
        assert (tmp_path / f"out/logs/{name}.log").read_text() == f"{name} saved\n", "no second signal while it saves"
    assert len(order(tmp_path)) == 2


def test_what_ends_well_in_spite_of_ctrl_c_ends_the_pipeline_too(tmp_path: Path) -> None:
    started = begun(tmp_path, a=2, b=2)
    started.send_signal(signal.SIGINT)  # it alone: its commands do not hear of it
    said, _ = started.communicate(timeout=60)
    assert started.returncode == 1 and "stopped; the same command resumes it" in said, said
    assert (tmp_path / "a").exists() and (tmp_path / "b").exists()


def test_a_result_that_was_ready_when_it_was_stopped_is_recorded(tmp_path: Path) -> None:
    commands = [made(tmp_path, "a", 1.0, 2, after=()), made(tmp_path, "b", 60, after=())]
    (tmp_path / "b.ready").touch()
    with pytest.raises(SystemExit):
        runner(tmp_path, 2).run(commands)
    assert json.loads((tmp_path / "out/settings/outputs.json").read_text()).keys() == {"b"}
    assert Spent(tmp_path / "out/settings/spent.json").commands().keys() == {"a", "b"}


def test_seconds_of_all_starts_are_added_up(tmp_path: Path) -> None:
    burn = "import time; t = time.process_time()\nwhile time.process_time() < t + 0.3: pass"
    totals = []
    for start in range(2):
        spent = Spent(tmp_path / "settings/spent.json")
        with spent.counted():
            subprocess.run([sys.executable, "-S", "-c", burn], check=True)
            spent.add("burn", 1.5, 0.3)
            after_it = Spent(
                tmp_path / "settings/spent.json"
            ).wall_and_cpu()  # as a start that is killed here leaves it
        totals.append(spent.wall_and_cpu())
        assert after_it[1] >= 0.3 * (start + 1) and after_it[1] <= totals[-1][1] <= after_it[1] + 0.3
    assert totals[1][1] >= totals[0][1] + 0.3 and totals[1][0] >= totals[0][0] + 0.3
    assert spent.commands() == {"burn": (3.0, 0.6)}
