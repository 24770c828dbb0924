"""A catalogue in parts on a Slurm of two nodes: an array, a merge that waits for it, failures, a time limit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mbsd.catalog.build.build import BuildOptions, build_catalog
from mbsd.catalog.sources import read_items
from tests.catalog.helpers import image_folder, write_jsonl
from tests.ranks import CPU, ROOT
from tests.slurm.cluster import Cluster

ROWS = 9000
PARTS = 3


@dataclass(frozen=True)
class Shop:
    """What is built, and the files of the catalogue that one build makes of it."""

    words: list[object]
    whole: dict[str, bytes]


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Items with repeated ids, and pictures of which one is broken; a part has some 3000 rows."""
    folder = tmp_path_factory.mktemp("shop")
    images = image_folder(folder / "images", 40)
    (images / "013.jpg").write_bytes(b"broken")
    records = [{"item_id": f"{n % 8700}", "title": f"title {n}", "image": f"{n:03d}.jpg"} for n in range(ROWS)]
    for record in records[40:]:
        del record["image"]
    items = write_jsonl(folder / "items.jsonl", *records)
    build_catalog(read_items(items), images, folder / "whole", BuildOptions(workers=1, progress=False))
    return Shop([items, "--images", images], files(folder / "whole"))


def submit(cluster: Cluster, *words: object, env: dict[str, str] | None = None) -> list[str]:
    """The numbers of the jobs that launchers/submit.py submits."""
    printed = cluster.run(sys.executable, "launchers/submit.py", "catalog", *words, env={**CPU, **(env or {})})
    return re.findall(r"^job (\d+): ", printed, re.MULTILINE)


def log(parts: Path, name: str) -> str:
    return (parts / "slurm" / name).read_text(errors="replace")


@pytest.mark.slurm
def test_parts_on_two_nodes_are_merged(cluster: Cluster, shop: Shop, tmp_path: Path) -> None:
    out, parts = tmp_path / "c", tmp_path / "c.parts"
    words = [*shop.words, "--out", out, "--parts", PARTS, "--cpus", 30, "--time", 10, "--workers", 1]
    array, merge = submit(cluster, *words)
    assert cluster.job(merge)["Dependency"] == f"afterok:{array}_*(unfulfilled)"
    ended = cluster.wait_for_job(merge)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), log(parts, "merge.log")
    assert files(out) == shop.whole
    nodes = {re.match(r"job \S+, restart 0 on (\S+): part", log(parts, f"part-{n}.log"))[1] for n in (1, 2, 3)}  # type: ignore[index]
    assert nodes == {"n1", "n2"}  # 60 cores of two parts fill a node
    assert f"c.parts/2-of-3: part 2 of {PARTS}: " in log(parts, "part-2.log")
    assert f"{out}: 8700 items, 39 with an image, 301 quarantined" in log(parts, "merge.log")

    facts = json.loads((parts / "slurm/001/submit.json").read_text())
    assert (facts["job"], facts["parts_job"], facts["parts"]) == (merge, array, [1, 2, 3])
    assert (parts / "slurm/001/part.sbatch").read_text() == (ROOT / "launchers/slurm/catalog.sbatch").read_text()
    assert (parts / "slurm/001/merge.sbatch").read_text() == (ROOT / "launchers/slurm/merge.sbatch").read_text()


@pytest.mark.slurm
def test_a_killed_part_keeps_the_merge_back_and_is_submitted_again(
    cluster: Cluster, shop: Shop, tmp_path: Path
) -> None:
    """Part 2 is killed at its first shard; the same command then submits it alone, and it resumes."""
    out, parts = tmp_path / "c", tmp_path / "c.parts"
    slow = tmp_path / "slow"  # an installation whose second part stands still when it has committed something
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(
        "import os, time\n"
        "if os.environ.get('SLURM_ARRAY_TASK_ID') == '2':\n"
        "    from mbsd.catalog.build import build\n"
        "    commit = build.UnfinishedBuild.commit\n"
        "    def stop(self, part, files):\n"
        "        commit(self, part, files)\n"
        "        time.sleep(600)\n"
        "    build.UnfinishedBuild.commit = stop\n"
    )
    words = [*shop.words, "--out", out, "--parts", PARTS, "--cpus", 1, "--time", 10]
    array, merge = submit(cluster, *words, env={"PYTHONPATH": f"{slow}:{os.environ.get('PYTHONPATH', '')}"})
    building = parts / "2-of-3.building"
    cluster.wait((building / "parts" / "000000.json").exists, "part 2 has committed a shard")
    (victim, *_) = [pid for node in cluster.nodes for pid in cluster.pids(node, "2-of-3") if b"build" in command(pid)]
    os.kill(victim, signal.SIGKILL)
    assert cluster.wait_for_job(merge)["JobState"] == "CANCELLED"
    states = {number: cluster.job(f"{array}_{number}")["JobState"] for number in (1, 2, 3)}
    assert states == {1: "COMPLETED", 2: "FAILED", 3: "COMPLETED"}
    assert not out.exists() and building.exists()

    again, merge = submit(cluster, *words)
    facts = json.loads((parts / "slurm/002/submit.json").read_text())
    assert (facts["job"], facts["parts_job"], facts["parts"]) == (merge, again, [2])
    assert cluster.wait_for_job(merge)["JobState"] == "COMPLETED", log(parts, "merge.log")
    assert "continued behind row" in log(parts, "part-2.log")
    assert files(out) == shop.whole


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.slurm
def test_near_its_time_limit_a_part_is_queued_again(cluster: Cluster, shop: Shop, tmp_path: Path) -> None:
    """By the signal that Slurm sends then, to a part that is stopped in its first moments."""
    out, parts = tmp_path / "c", tmp_path / "c.parts"
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    (waiting / "sitecustomize.py").write_text(
        "import os, time\n"
        "if os.environ.get('SLURM_ARRAY_TASK_ID') and 'SLURM_RESTART_COUNT' not in os.environ:\n"
        "    time.sleep(600)\n"
    )
    words = [*shop.words, "--out", out, "--parts", 1, "--cpus", 1, "--time", 10]
    array, merge = submit(cluster, *words, env={"PYTHONPATH": f"{waiting}:{os.environ.get('PYTHONPATH', '')}"})
    cluster.wait(lambda: (parts / "slurm/part-1.log").exists() and log(parts, "part-1.log") != "", "the part runs")
    cluster.run("scancel", "--batch", "--signal=USR1", f"{array}_1")
    ended = cluster.wait_for_job(merge)
    assert (ended["JobState"], cluster.job(f"{array}_1")["Restarts"]) == ("COMPLETED", "1"), log(parts, "part-1.log")
    assert "the time limit is near: part 1 is queued again\n" in log(parts, "part-1.log")
    assert f"job {array}_1, restart 1 on n" in log(parts, "part-1.log") and files(out) == shop.whole


def dry(*words: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "launchers/submit.py", *map(str, words), "--dry-run"]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_a_dry_run_prints_both_jobs_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "c"
    done = dry(
        "catalog", "items.jsonl", "--images", "images/", "--out", out, "--max-rejects", "0.2", "--parts", 4,
        "--cpus", 16, "--time", "8:00:00", "--partition", "cpu", "--account", "shop", "--sbatch=--qos=high",
        "--depends-on", 12,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    build, merge = (line.split() for line in done.stdout.splitlines()[:2])
    assert build[0] == merge[0] == "sbatch"
    assert build[-10:] == [
        f"{out}.parts/slurm/001/part.sbatch", f"{out}.parts", "4", "items.jsonl", "--images", "images/", "--out",
        str(out), "--max-rejects", "0.2",
    ]  # fmt: skip
    assert merge[-9:] == [
        f"{out}.parts/slurm/001/merge.sbatch", *(f"{out}.parts/{number}-of-4" for number in (1, 2, 3, 4)), "--out",
        str(out), "--max-rejects", "0.2",
    ]  # fmt: skip
    both = {"--time=8:00:00", "--partition=cpu", "--account=shop", "--qos=high", "--open-mode=append"}
    assert both | {"--array=1-4", "--cpus-per-task=16", "--dependency=afterok:12"} <= set(build)
    assert both | {"--dependency=afterok:PARTS", "--kill-on-invalid-dep=yes"} <= set(merge)
    assert "--cpus-per-task=16" not in merge
    for name in ("catalog", "merge"):
        assert (ROOT / f"launchers/slurm/{name}.sbatch").read_text() in done.stdout
    assert not list(tmp_path.iterdir())


def test_what_is_finished_is_not_submitted_again(tmp_path: Path) -> None:
    out = tmp_path / "c"
    words = ["catalog", "items.jsonl", "--out", out, "--parts", 5]
    for number in (1, 3, 4):
        (tmp_path / "c.parts" / f"{number}-of-5").mkdir(parents=True)
        (tmp_path / "c.parts" / f"{number}-of-5" / "part.json").touch()
    assert "--array=2,5" in dry(*words).stdout
    for number in (2, 5):
        (tmp_path / "c.parts" / f"{number}-of-5").mkdir(parents=True)
        (tmp_path / "c.parts" / f"{number}-of-5" / "part.json").touch()
    (line, *_) = dry(*words).stdout.splitlines()
    assert "merge.sbatch" in line and "--array" not in line and "--dependency" not in line


def test_a_run_can_depend_on_a_catalogue(tmp_path: Path) -> None:
    (tmp_path / "c.parts/slurm/001").mkdir(parents=True)
    (tmp_path / "c.parts/slurm/001/submit.json").write_text(json.dumps({"job": "40", "seeds": []}))
    words = ["--config", "launchers/configs/stage1.yaml", "--deepspeed_config", "ds_configs/v100x16_stage1.json"]
    words = ["pretrain", *words, "--depends-on", str(tmp_path / "c")]
    assert "--dependency=afterok:40 " in dry(*words).stdout
    (tmp_path / "c").mkdir()
    (tmp_path / "c/catalog.json").touch()
    done = dry(*words)
    assert done.returncode == 0 and "--dependency" not in done.stdout


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["catalog", "items.jsonl", "--out", "c"], "--parts is missing"),
        (["catalog", "items.jsonl", "--out", "c", "--parts", 0], "--parts 0: expected 1 or more"),
        (["catalog", "items.jsonl", "--out", "c", "--parts", 2, "--nodes", 2], "--nodes 2: of a training run"),
        (["catalog", "items.jsonl", "--out", "c", "--parts", 2, "--part", "1/2"], "--part: not for a catalogue that"),
        (["catalog", "items.jsonl", "--out", "c", "--parts", 2, "--restart"], "--restart: not for a catalogue that"),
        (["catalog", "items.jsonl", "--out", "c", "--parts", 2, "--max-sides", 3], "--max-sides"),
        (["catalog", "items.jsonl", "--parts", 2], "--out"),
        (["catalog", "items.jsonl", "--out", "tests", "--parts", 2], "tests: already there"),
        (["pretrain", "--parts", 2], "--parts 2: of a catalogue"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(words: list[object], named: str) -> None:
    done = dry(*words)
    assert done.returncode == 2 and done.stdout == "", done.stdout
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ") and named in done.stderr
