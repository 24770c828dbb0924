"""A real Slurm of a few nodes on this machine, for the time of some tests.

All of it lives in a network namespace of its own, with fixed names and addresses that nobody outside sees: a head
(munged, slurmctld) and nodes, each a slurmd in network, host-name, process and mount namespaces of its own. Processes
begin in this process and are told to die with it; what a node runs dies with its first process, as when its plug is
pulled.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PACKAGES = {
    "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge", "ip": "iproute2",
}  # fmt: skip
CPUS, GPUS = 64, 8  # said, whatever the machine has
HEAD = "10.1.0.100"
CONF = """
ClusterName=mbsd
SlurmctldHost=head({head})
SlurmUser=root
AuthType=auth/munge
# A requeued job waits until the credential of its start before has expired.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldDebug=debug2
SlurmdParameters=config_overrides
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
ReturnToService=2
MessageTimeout=5
SlurmdTimeout=5
KillWait=10
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=ALL MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why no Slurm can be had here; "" if it can. Installs the packages where that is all there is to do."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a Slurm of its own needs root on Linux"
    missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if missing:
        apt = shutil.which("apt-get")
        if apt is None:
            return f"the Debian packages {' '.join(missing)} are missing, and so is apt-get"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = [apt, "install", "-qq", "-y", "--no-install-recommends", *missing]
        if (
            subprocess.run([apt, "update", "-qq"], env=env, **quiet).returncode
            or subprocess.run(install, env=env, **quiet).returncode
        ):
            return f"apt-get could not install {' '.join(missing)}"
    probe = subprocess.run(
        ["unshare", "--net", "--fork", "ip", "link", "add", "b0", "type", "bridge"], capture_output=True
    )
    return "" if probe.returncode == 0 else "this kernel gives no network namespaces or bridges"


class Cluster:
    """A running Slurm; `close` ends every process of it.

    Args:
        folder: for its configuration, state and logs.
        nodes: their names.
    """

    def __init__(self, folder: Path, nodes: Sequence[str] = ("n1", "n2")) -> None:
        self.folder, self.nodes = folder, list(nodes)
        self.conf = folder / "slurm.conf"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._up()
        except BaseException:
            self.close()
            raise

    def run(self, *words: object, env: Mapping[str, str] | None = None, check: bool = True) -> str:
        """What a command of a user on the head says to stdout; its stderr too where it fails."""
        done = subprocess.run(
            self.on_head(*words), env={**self.environment(), **(env or {})}, capture_output=True, text=True, timeout=120
        )
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}{self.logs()}"
        return done.stdout if done.returncode == 0 else done.stdout + done.stderr

    def on_head(self, *words: object) -> list[str]:
        """The command line that runs `words` where the cluster's network is."""
        namespaces = f"/proc/{self._processes['head'].pid}/ns"
        into = [f"--{name}={namespaces}/{file}" for name, file in (("net", "net"), ("uts", "uts"), ("mount", "mnt"))]
        return ["nsenter", *into, "--wd=.", *map(str, words)]

    def environment(self) -> dict[str, str]:
        """Of its users."""
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        return {**mine, "SLURM_CONF": str(self.conf)}

    def job(self, job: str) -> dict[str, str]:
        """What Slurm knows about a job: JobState, RestartCnt, ExitCode and so on."""
        words = self.run("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, true: Callable[[], bool], what: str, seconds: float = 120, every: float = 0.03) -> None:
        """Wait until it is true, asking anew after `every` seconds."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}\n{self.logs()}"
            time.sleep(every)

    def wait_for_job(self, job: str, seconds: float = 180) -> dict[str, str]:
        """The job's facts at its end."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        self.wait(lambda: self.job(job)["JobState"] in ended, f"job {job} ends", seconds, every=0.5)
        return self.job(job)

    def wait_for_restart(self, job: str, number: int) -> None:
        """Return when the job has been queued again so many times."""
        self.wait(lambda: int(self.job(job)["Restarts"]) >= number, f"job {job} is queued again", every=0.5)

    def pids(self, node: str, word: str) -> list[int]:
        """The processes of a node that have a word on their command line."""
        found = []
        for pid in _descendants(self._processes[node].pid):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(part.decode(errors="replace").endswith(word) for part in words):
                found.append(pid)
        return found

    def crash(self, node: str) -> None:
        """Pull the plug of a node."""
        self._end(node)

    def start_node(self, node: str) -> None:
        """Switch a node on."""
        address, head = _address(self.nodes.index(node)), self._processes["head"].pid
        to_head = f"nsenter --net=/proc/{head}/ns/net"
        inside = f"""
            mount -t tmpfs -o mode=1777 tmpfs /dev/shm
            hostname {node}
            slurmd -D -N {node} -f {self.conf} &
            wait
        """
        script = f"""
            set -e
            {to_head} ip link del to-{node} 2>/dev/null || true
            ip link add eth0 type veth peer name to-{node} netns {head}
            {to_head} ip link set to-{node} master lan up
            ip addr add {address}/24 dev eth0
            ip link set eth0 up
            ip link set lo up
            exec unshare --uts --pid --mount --fork --mount-proc --kill-child bash -c {shlex.quote(inside)}
        """
        self._start(node, *self.on_head("unshare", "--net", "bash", "-c", script))

    def logs(self) -> str:
        """The ends of its logs."""
        return "".join(
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-25:]) + "\n"
            for path in sorted(self.folder.glob("*.log"))
        )

    def close(self) -> None:
        """End every process."""
        for name in reversed(list(self._processes)):
            self._end(name)

    def _up(self) -> None:
        for name in ("state", "munge", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        names = {"localhost": "127.0.0.1", "head": HEAD, **{n: _address(i) for i, n in enumerate(self.nodes)}}
        (self.folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in names.items()))
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={node} NodeAddr={names[node]} CPUs={CPUS} Gres=gpu:{GPUS} State=UNKNOWN"
            for node in self.nodes
        )
        self.conf.write_text(CONF.format(folder=self.folder, head=HEAD, nodes=nodes))
        for number in range(GPUS):  # as GPUs go, null devices
            os.mknod(self.folder / f"gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # none is used, and slurmd asks for one

        up, nowhere = self.folder / "head.up", self.folder / "resolv.conf"
        nowhere.touch()  # to ask a name server that cannot be reached takes seconds each time
        script = f"""
            hostname head
            mount --bind {self.folder}/hosts /etc/hosts
            [ ! -e /etc/resolv.conf ] || mount --bind {nowhere} /etc/resolv.conf
            touch {up}
            exec sleep infinity
        """
        self._start("head", "unshare", "--net", "--uts", "--mount", "bash", "-c", script)
        self.wait(up.exists, "the head has namespaces of its own", 10)
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "link", "add", "lan", "type", "bridge")
        self.run("ip", "addr", "add", f"{HEAD}/24", "dev", "lan")
        self.run("ip", "link", "set", "lan", "up")
        munge = self.folder / "munge"
        self._start(
            "munged", "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}/socket",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        self.wait((munge / "socket").exists, "munged listens", 10)
        alone = ["unshare", "--pid", "--fork", "--kill-child"]
        self._start("slurmctld", *self.on_head(*alone, "slurmctld", "-D", "-c", "-f", self.conf))
        for node in self.nodes:
            self.start_node(node)
        self.wait(self._ready, "all nodes are idle", 30)

    def _ready(self) -> bool:
        return self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%t", check=False).split() == ["idle"] * len(
            self.nodes
        )

    def _start(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.out.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self.environment(),
            )  # fmt: skip

    def _end(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait()


def _address(number: int) -> str:
    return f"10.1.0.{number + 1}"


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        found += children + [below for child in children for below in _descendants(child)]
    return found
