"""A run that is killed again and again, restarted by the same command, and compared with one that was left alone.

Kills come at random moments, or deliberately inside a phase of a save: `die_inside` is called in a rank before the
launcher and makes one file-system call of the checkpoint code the rank's last. The product knows nothing of it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.ranks import CPU, ROOT, Ranks, deepspeed_command, launch

# Phases of a save: the call, what its path ends with ("" any), when it comes relative to the call.
PHASES = {
    "before a rank's state is written": ("open", ".safetensors", "before"),
    "in the middle of a file": ("write", "", "middle"),
    "before a file is synced": ("fsync", "", "before"),
    "before the manifest": ("open", "manifest.json", "before"),
    "in the manifest": ("write", "manifest.json", "middle"),
    "before the folder is published": ("rename", "", "before"),
    "after it is published, before latest": ("rename", "", "after"),
    "before latest is replaced": ("replace", "latest", "before"),
    "while old ones are removed": ("rmdir", "", "before"),
}
LAUNCHER = ("the launcher", "the launcher and all", "SIGTERM to the launcher")
RANKS = ("one rank", "all ranks", "SIGTERM to all", "SIGTERM to one rank")
GIVE_UP = 300  # seconds after which a start must have ended or been killed


def die_inside(rank: int, victim: int, phase: str, occurrence: int) -> None:
    """Make the `occurrence`-th call of a phase, among those on checkpoint files, the last thing rank `victim` does."""
    if rank != victim:
        return
    name, suffix, moment = PHASES[phase]
    real, opened, seen = getattr(os, name), os.open, Counter[str]()
    paths: dict[int, str] = {}

    def remember(path: Any, *arguments: Any, **more: Any) -> int:
        descriptor = opened(path, *arguments, **more)
        paths[descriptor] = str(path)
        return descriptor

    def call(target: Any, *arguments: Any, **more: Any) -> Any:
        path = paths.get(target, "") if isinstance(target, int) else str(arguments[0] if name == "replace" else target)
        if ("/checkpoints" in path or name == "rmdir") and path.endswith(suffix):
            seen[phase] += 1
            if seen[phase] == occurrence:
                if moment == "middle":
                    real(target, arguments[0][: len(arguments[0]) // 2])
                elif moment == "after":
                    real(target, *arguments, **more)
                os.kill(os.getpid(), signal.SIGKILL)
        return real(target, *arguments, **more) if name != "open" else remember(target, *arguments, **more)

    os.open = remember
    setattr(os, name, call)


def chaos(arguments: list[object], run: Path, log: Path, kills: int, seed: int, tell: Callable[[str], None]) -> int:
    """Kill and restart the run `kills` times at least, then let it finish; returns how many starts that took.

    Every sixth start goes through DeepSpeed's launcher; the others are ranks that the same launcher script runs in.
    """
    rng = random.Random(seed)
    phases = list(PHASES)
    done = starts = 0
    survivors: list[int] = []
    while done < kills:
        assert not (run / "DONE").exists(), f"the run finished after {done} kills: give it more steps"
        starts += 1
        if starts % 6 == 0:
            what = LAUNCHER[starts // 6 % len(LAUNCHER)]
            killed = _launched(arguments, run, what, rng, survivors)
        elif starts % 2 == 0:
            what = RANKS[starts // 2 % len(RANKS)]
            killed = _at_random(arguments, run, log / f"{starts}", what, rng)
        else:
            what = phases[(starts // 2) % len(phases)]
            victim = 0 if what not in list(phases)[:3] else rng.randrange(2)
            killed = _inside(arguments, run, log / f"{starts}", what, victim, rng.randint(1, 3), survivors)
        done += killed
        tell(f"start {starts}: {what}: {'killed' if killed else 'not reached'}; newest {_newest(run)}")
    # The run's owner is the last start; an older one has been fenced, or is ended before it could be.
    for pid in survivors:
        _signal(pid, signal.SIGKILL)
    return starts


def _inside(  # noqa: PLR0913 (what a restart is drawn from)
    arguments: list[object], run: Path, log: Path, phase: str, victim: int, occurrence: int, survivors: list[int]
) -> bool:
    before = _owner(run)
    start = Ranks(2, arguments, log, before=(die_inside, (victim, phase, occurrence)))
    if survivors:
        _wait(lambda: _owner(run) != before or not any(p.is_alive() for p in start.processes))
        for pid in survivors:
            _signal(pid, signal.SIGCONT)  # back from their pause they have to find out that the run is not theirs
    codes = start.wait(GIVE_UP)
    assert set(codes) <= {0, 1, -signal.SIGKILL}, start.printed()[-4000:]
    return codes[victim] == -signal.SIGKILL


def _at_random(arguments: list[object], run: Path, log: Path, what: str, rng: random.Random) -> bool:
    start = Ranks(2, arguments, log)
    _wait(lambda: "steps " in start.printed() or not any(p.is_alive() for p in start.processes))
    time.sleep(rng.uniform(0, 1.5))
    number = signal.SIGTERM if what.startswith("SIGTERM") else signal.SIGKILL
    alive = [p for p in start.processes if p.is_alive()]
    for process in alive if what.endswith(("all", "all ranks")) else alive[rng.randrange(2) :][:1]:
        os.kill(process.pid, number)
    codes = start.wait(GIVE_UP)
    assert set(codes) <= {0, 1, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGABRT}, start.printed()[-4000:]
    return bool(alive) and not (run / "DONE").exists()


def _launched(arguments: list[object], run: Path, what: str, rng: random.Random, survivors: list[int]) -> bool:
    process = subprocess.Popen(
        deepspeed_command(2, "pretrain", *arguments), cwd=ROOT, env={**os.environ, **CPU}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    before = _newest(run)
    _wait(lambda: _newest(run) != before or process.poll() is not None)  # it has saved once more
    time.sleep(rng.uniform(0, 1.0))
    family = _tree(process.pid)
    if what == "SIGTERM to the launcher":
        os.kill(process.pid, signal.SIGTERM)
    else:
        for pid in family if what.endswith("all") else family[:1]:
            _signal(pid, signal.SIGKILL)
    process.wait(GIVE_UP)
    if what.endswith("all"):
        _wait(lambda: not any(_lives(pid) for pid in family))
    else:
        # The ranks live on without their launcher, and the next start has to fence them. Until it owns the run they
        # pause, as behind a network that is cut: on a slow machine they would else reach the end of the run first.
        survivors.extend(family)
        for pid in family:
            _signal(pid, signal.SIGSTOP)
    return not (run / "DONE").exists()


def _newest(run: Path) -> str:
    return max((path.name for path in (run / "checkpoints").glob("step-*")), default="none")


def _owner(run: Path) -> str:
    path = run / "checkpoints" / "owner.json"
    return path.read_text() if path.exists() else ""


def _wait(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + GIVE_UP
    while not happened():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def _signal(pid: int, number: int) -> None:
    if _lives(pid):
        os.kill(pid, number)


def _lives(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [pid, *(descendant for child in children for descendant in _tree(int(child)))]


def main() -> None:
    """`python -m tests.checkpoint.chaos CATALOG OUT KILLS SEED`: the long version (make chaos)."""
    from tests.checkpoint.runs import chaos_arguments, checksums, newest_step

    catalog, out, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    out = out.resolve()
    whole, cut = (chaos_arguments(out / name, catalog.resolve(), kills) for name in ("whole", "cut"))
    launch(2, whole, out / "log", timeout=3600)
    began = time.monotonic()
    starts = chaos(cut, out / "cut", out / "log", kills, seed, lambda text: print(text, flush=True))
    launch(2, cut, out / "log", timeout=3600)
    same = checksums(newest_step(out / "cut")) == checksums(newest_step(out / "whole"))
    print(f"{kills} kills in {starts} starts, {time.monotonic() - began:.0f} s; bitwise equal: {same}")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
