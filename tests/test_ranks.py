"""What the tests start ranks with tells a failure and a standstill apart, with what is needed to find the place."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.ranks import Ranks, call, command

pytestmark = pytest.mark.distributed


def stop(rank: int, seconds: float = 1000) -> None:
    time.sleep(seconds)


def fail(rank: int, world_size: int, what: str) -> int:
    if rank == 1:
        raise ValueError(what)
    return rank


def test_results_and_failures_of_a_function() -> None:
    assert call(fail, 1, "never") == [0]
    with pytest.raises(AssertionError, match="(?s)exit codes by rank.*in fail.*ValueError: here"):
        call(fail, 2, "here")


def test_a_standstill_is_given_up_with_stacks(tmp_path: Path) -> None:
    ranks = Ranks.of([[(stop, ())], [(stop, (0.0,))]], tmp_path)
    with pytest.raises(AssertionError, match="(?s)not done after 2 s.*test_ranks.py.*in stop"):
        ranks.wait(timeout=2)
    assert not any(process.is_alive() for process in ranks.processes)


def test_a_command_has_its_own_output_and_exit_code() -> None:
    done = command("catalog", "biuld")
    assert (done.returncode, done.stdout) == (2, "") and "biuld" in done.stderr
    assert "--items" in command("catalog", "synth", "--help").stdout
