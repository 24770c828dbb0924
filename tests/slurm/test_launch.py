"""The commands of the docs: launchers that give the same losses, and jobs as they are submitted."""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mbsd.parallel.launch_env import first_host
from tests.conftest import Shop
from tests.ranks import CPU, ROOT, deepspeed
from tests.settings import losses, stage_1_words
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.distributed]

STEPS = 5
PAGES = [(ROOT / "docs" / name).read_text() for name in ("training.md", "slurm.md")]
DOCS = "\n".join(PAGES).replace("\\\n", " ").splitlines()
# `python` and the launchers of this environment, on CPUs; Open MPI asks whether root means it.
ENVIRONMENT = {
    **CPU, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}  # fmt: skip


def shown(beginning: str) -> list[list[str]]:
    """The words of the docs' commands that begin so."""
    return [shlex.split(line) for line in DOCS if line.startswith(beginning)]


def on_two_ranks(program: str) -> list[str]:
    """The docs' command of a launcher, up to its arguments, with 2 ranks in place of 8 or 2 x 8."""
    (words,) = shown(f"{program} ")
    ranks = "1" if "--nodes" in words else "2"
    return [ranks if word == "8" else word for word in words[: words.index("launchers/pretrain.py") + 1]]


def arguments(run: Path, shop: Shop) -> list[object]:
    words = ["--run.log_every=1", "--run.validate_samples=8", "--data.num_workers=0"]
    return stage_1_words(run, shop.catalog, STEPS, *words)


def run_program(program: str, *words: object, cluster: Cluster | None = None) -> tuple[int, str]:
    """(exit code, all it printed) of the docs' command with these arguments."""
    command = [*on_two_ranks(program), *map(str, words)]
    env = {**os.environ, **ENVIRONMENT}
    if cluster is not None:
        command, env = cluster.on_head(*command), {**cluster.environment(), **ENVIRONMENT}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def by_deepspeed(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("deepspeed") / "run"
    deepspeed(2, "pretrain", *arguments(run, shop))
    return run


@pytest.mark.parametrize("program", ["torchrun", "mpirun", "srun"])
def test_every_launcher_gives_the_same_losses(
    program: str, by_deepspeed: Path, shop: Shop, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cluster = request.getfixturevalue("cluster") if program == "srun" else None
    code, said = run_program(program, *arguments(tmp_path / "run", shop), cluster=cluster)
    assert code == 0, said
    assert f"2 ranks on {2 if program == 'srun' else 1} host" in said and f"started by {program}, gloo, torch" in said
    assert losses(tmp_path / "run") == losses(by_deepspeed)
    assert sorted(losses(by_deepspeed)) == list(range(1, STEPS + 1))


@pytest.mark.parametrize("program", ["mpirun", "srun"])
def test_a_mistake_is_said_once(
    program: str, shop: Shop, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mpirun ends with 2; so does srun, unless it was quicker to end the other rank than that was itself."""
    monkeypatch.setenv("MBSD_MISTAKE_FILE", str(tmp_path / "mistake"))
    cluster = request.getfixturevalue("cluster") if program == "srun" else None
    code, said = run_program(program, *arguments(tmp_path / "run", shop), "--run.max_steps=0", cluster=cluster)
    assert code == 2 or (program == "srun" and code == 128 + signal.SIGTERM), said
    assert [line for line in said.splitlines() if "run.max_steps=0" in line] == [
        "error: run.max_steps=0: expected 1 or more"
    ], said
    assert (tmp_path / "mistake").read_text() == "run.max_steps=0: expected 1 or more\n"


def test_a_world_that_slurm_was_not_asked_for_is_refused(cluster: Cluster, shop: Shop, tmp_path: Path) -> None:
    """Two tasks that were each told to be a world of one, as by a launcher that did not find its place."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    command = cluster.on_head(
        "srun", "-n", 2, "-N", 2, "python", "launchers/pretrain.py", *arguments(tmp_path / "r", shop)
    )
    env = {**cluster.environment(), **ENVIRONMENT, **alone}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode == 2 and len(errors) == 2, done.stderr
    for host in cluster.nodes:
        assert any(f"{host}: Slurm gave 2 tasks (SLURM_STEP_NUM_TASKS) and the world has 1 rank " in e for e in errors)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("nodes", ["n1", "n[1-2]", "rack[2,7-9]-n[007-012]", "a,b[1-2]", "gpu-a100-[03,01],login"])
def test_the_first_host_is_slurms(cluster: Cluster, nodes: str) -> None:
    assert first_host(nodes) == cluster.run("scontrol", "show", "hostnames", nodes).split()[0]


def test_the_jobs_of_the_shown(cluster: Cluster, tmp_path: Path) -> None:
    """Slurm takes all, held: two stages of 2 x 8 ranks and four seeds of fine-tuning, each after the one before."""
    for name in ("launchers", "ds_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    script, program = shlex.quote(str(tmp_path)), shlex.quote(sys.executable)
    stages = [words for words in shown("python launchers/submit.py") if "catalog" not in words]
    jobs = []
    for words in stages:
        line = shlex.join([*words[1:], "--sbatch=--hold"])
        jobs.append(cluster.run("bash", "-c", f"cd {script} && {program} {line}").split()[1].rstrip(":"))
    assert len(jobs) == 3
    facts = [cluster.job(job) for job in jobs]
    assert [(job["NumNodes"].split("-")[0], job["NumTasks"], job["TimeLimit"], job["Partition"]) for job in facts] == [
        ("2", "16", "1-00:00:00", "gpu"), ("2", "16", "1-00:00:00", "main"), ("1", "1", "08:00:00", "main"),
    ]  # fmt: skip
    assert facts[2]["ArrayTaskId"] == "0-3"
    for before, after in itertools.pairwise(range(3)):
        assert facts[after]["Dependency"] == f"afterok:{jobs[before]}(unfulfilled)"
    assert facts[1]["StdOut"] == str(tmp_path / "runs/stage2/slurm/log.txt")
    sbatch = f"sbatch --parsable --hold launchers/slurm/pretrain.sbatch {shlex.join(stages[0][3:7])}"
    direct = cluster.run("bash", "-c", f"cd {script} && {sbatch}").strip()
    assert cluster.job(direct)["NumTasks"] == "16"
    cluster.run("scancel", *jobs, direct)
