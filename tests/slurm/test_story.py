"""Jobs on a Slurm of two nodes, from submit.py to their ends: time limit, lost node, chain, array, kill -9."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.checkpoint.runs import checksums, step
from tests.conftest import Shop
from tests.ranks import CPU, ROOT, Ranks
from tests.settings import TINY, losses, write_ds_config
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.distributed]

STEPS = 40
SIZES = [word for word in TINY if word.startswith(("--data", "--model.dropout")) and "workers" not in word]


@dataclass(frozen=True)
class Submitted:
    """A job of a run folder."""

    number: str
    run: Path

    @property
    def log(self) -> str:
        return (self.run / "slurm" / "log.txt").read_text(errors="replace")

    def steps(self) -> int:
        """Lines of metrics."""
        path = self.run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0


@dataclass(frozen=True)
class Story:
    """What is submitted at the beginning, all at once."""

    stage_1: Submitted
    arguments: list[object]
    seeds: Submitted
    finetune: Submitted
    hopeless: Submitted
    mistaken: Submitted


def submit(cluster: Cluster, launcher: str, run: Path, *words: object, env: dict[str, str] | None = None) -> Submitted:
    """Through launchers/submit.py, as a user does."""
    command = [sys.executable, "launchers/submit.py", launcher, "--run.dir", run, *words]
    said = cluster.run(*command, env={**CPU, **(env or {})})
    return Submitted(said.split()[1].rstrip(":"), run)


@pytest.fixture(scope="module")
def story(cluster: Cluster, shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    ds = write_ds_config(folder)
    common = ["--deepspeed_config", ds, "--data.catalog", shop.catalog, "--data.num_workers=0", "--run.log_every=1"]
    common += ["--run.validate_every=0", "--run.validate_samples=8"]
    tiny = [word for word in TINY if "num_workers" not in word and "dropout" not in word] + ["--model.dropout=0.1"]
    stage_1 = [*common, *tiny, f"--run.max_steps={STEPS}", "--run.save_every=8"]
    first = submit(
        cluster, "pretrain", folder / "stage1", *stage_1, "--nodes=2", "--gpus=2", "--time=30",
        "--sbatch=--signal=USR1@90"
    )  # fmt: skip
    more = [*common, *SIZES, "--nodes=1", "--gpus=0", "--ranks=1"]
    seeds = submit(
        cluster, "pretrain", folder / "stage2", "--stage=matching", "--data.table", shop.pairs, "--run.init_from",
        first.run, *more, "--run.max_steps=30", "--run.save_every=4", "--seeds=0-1", "--depends-on", first.run,
    )  # fmt: skip
    finetune = submit(
        cluster, "finetune", folder / "tags", "--data.table", shop.tags, "--run.init_from", seeds.run / "seed-1", *more,
        "--run.max_steps=4", "--depends-on", seeds.run / "seed-1",
    )  # fmt: skip
    broken = folder / "broken"  # an installation whose ranks die as they start
    broken.mkdir()
    (broken / "sitecustomize.py").write_text('import os\nif "SLURM_STEP_ID" in os.environ:\n    os._exit(1)\n')
    hopeless = submit(
        cluster, "pretrain", folder / "hopeless", *stage_1, "--nodes=1", "--gpus=0", "--ranks=1",
        env={"PYTHONPATH": f"{broken}:{os.environ.get('PYTHONPATH', '')}", "MBSD_MAX_FAILURES": "2"},
    )  # fmt: skip
    mistaken = folder / "mistaken"
    (mistaken / "slurm").mkdir(parents=True)
    number = cluster.run(
        "sbatch", "--parsable", "--nodes=1", "--ntasks-per-node=1", f"--output={mistaken}/slurm/log.txt",
        "launchers/slurm/pretrain.sbatch", *stage_1, "--run.dir", mistaken, "--run.max_steps=0",
        env={**CPU, "MBSD_PYTHON": sys.executable},
    ).strip()  # fmt: skip
    return Story(first, stage_1, seeds, finetune, hopeless, Submitted(number, mistaken))


def ranks(cluster: Cluster) -> list[int]:
    """The processes that run launchers/pretrain.py, on all nodes."""
    found = [pid for node in cluster.nodes for pid in cluster.pids(node, "launchers/pretrain.py")]
    return [pid for pid in found if command(pid)[0] != b"srun"]


def command(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def test_a_run_outlives_its_time_limit_and_a_lost_node(cluster: Cluster, story: Story, tmp_path: Path) -> None:
    """Bitwise the end of an undisturbed run, in one log."""
    job, run = story.stage_1, story.stage_1.run
    begun = time.monotonic()
    waiting = cluster.run("squeue", "-h", "-t", "PD", "-o", "%A %r")
    assert {f"{story.seeds.number} Dependency", f"{story.finetune.number} Dependency"} <= set(waiting.splitlines())

    # The time limit is near. Slurm looks every 30 seconds; the ranks stand still until it wakes them and tells them.
    cluster.wait(lambda: job.steps() >= 3, "stage 1 has begun")
    first = ranks(cluster)
    assert len(first) == 4
    for pid in first:
        os.kill(pid, signal.SIGSTOP)
    minutes = int(time.monotonic() - begun) // 60 + 2
    cluster.run("scontrol", "update", f"JobId={job.number}", f"TimeLimit={minutes}")
    undisturbed = tmp_path / "undisturbed"
    other = Ranks(4, [*story.arguments, "--run.dir", undisturbed], tmp_path / "log")
    cluster.wait_for_restart(job.number, 1)
    cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=30")
    stopped = max(losses(run))
    assert f"SIGUSR1: saved and stopped after step {stopped} of {STEPS}" in job.log

    assert other.wait() == [0] * 4, other.printed()

    # A node is lost.
    cluster.wait(lambda: job.steps() >= stopped + 6, "the run goes on")
    cluster.crash("n2")
    cluster.wait_for_restart(job.number, 2)
    cluster.start_node("n2")
    ended = cluster.wait_for_job(job.number)

    restarts = int(ended["Restarts"])
    assert (ended["JobState"], ended["ExitCode"], restarts) == ("COMPLETED", "0:0", 2), job.log
    origins, steps = (re.findall(rf"^  {name} +(.+)$", job.log, re.MULTILINE) for name in ("start", "steps"))
    assert origins[:2] == ["weights of scratch", f"resuming {step(run, stopped)}"]
    assert len(origins) == len(steps) == 3 and origins[2].startswith("resuming ")
    assert [line.partition(" of ")[0] for line in steps[:2]] == [f"1-{STEPS}", f"{stopped + 1}-{STEPS}"]
    assert all(job.log.count(f"job {job.number}, restart {count} on n[1-2]: ") == 1 for count in range(restarts + 1))
    assert job.log.count("4 ranks on 2 hosts, started by srun, gloo") == restarts + 1
    assert checksums(step(run, STEPS)) == checksums(step(undisturbed, STEPS))
    assert losses(run) == losses(undisturbed)
    assert not list((run / "slurm").glob("extensions-*"))


def test_what_was_submitted_is_written_down(story: Story) -> None:
    frozen = story.stage_1.run / "slurm" / "001"
    assert (frozen / "job.sbatch").read_text() == (ROOT / "launchers/slurm/pretrain.sbatch").read_text()
    assert f"max_steps: {STEPS}" in (frozen / "config.yaml").read_text()
    assert json.loads((frozen / "ds_config.json").read_text())["train_batch_size"] == 16
    facts = json.loads((frozen / "submit.json").read_text())
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert facts["commit"] == (head.stdout.strip() if head.returncode == 0 else None)
    assert facts["job"] == story.stage_1.number and "--nodes=2" in facts["command"]


def test_chained_stages_seeds_and_a_killed_rank(cluster: Cluster, story: Story) -> None:
    """Each begins when what it depends on has ended well; a rank that is killed costs its run a restart."""
    seeds = [Submitted(f"{story.seeds.number}_{seed}", story.seeds.run / f"seed-{seed}") for seed in (0, 1)]
    killed = seeds[1]
    cluster.wait(step(killed.run, 4).exists, "seed 1 has saved", 180)
    (victim,) = [pid for pid in ranks(cluster) if str(killed.run).encode() in command(pid)]
    os.kill(victim, signal.SIGKILL)

    ended = cluster.wait_for_job(story.finetune.number)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "0"), story.finetune.log
    assert f"weights of {killed.run}" in story.finetune.log
    assert "the ranks failed (137), 1 of 3 times in a row without a new checkpoint" in killed.log
    assert killed.log.count(f"resuming {killed.run}/checkpoints/step-") == 1
    for seed, job in enumerate(seeds):
        ended = cluster.wait_for_job(job.number)
        assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", str(seed)), job.log
        assert f"weights of {story.stage_1.run}" in job.log
        assert f"  seed: {seed}\n" in (job.run / "config.yaml").read_text()
        assert sorted(losses(job.run)) == list(range(1, 31))
    assert losses(seeds[0].run) != losses(seeds[1].run)


def test_jobs_that_cannot_succeed_end(cluster: Cluster, story: Story) -> None:
    """Failures after so many in a row without a checkpoint; a user's mistake at once, with its exit code."""
    ended = cluster.wait_for_job(story.hopeless.number)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "1:0", "1"), story.hopeless.log
    assert "the ranks failed (1), 2 of 2 times in a row without a new checkpoint" in story.hopeless.log
    ended = cluster.wait_for_job(story.mistaken.number)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0"), story.mistaken.log
    assert story.mistaken.log == "error: run.max_steps=0: expected 1 or more\n"


def test_the_queue_ends_empty(cluster: Cluster, story: Story) -> None:
    for job in (story.stage_1, story.finetune, story.hopeless, story.mistaken):
        cluster.wait_for_job(job.number)
    assert cluster.run("squeue", "-h") == ""
