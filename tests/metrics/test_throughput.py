"""How many cores a rank keeps busy, told by the process itself and its workers."""

from __future__ import annotations

import multiprocessing
import time

import torch

from mbsd.metrics.throughput import Throughput, cpu_seconds
from tests.model.reference import tiny_config


def burn(seconds: float) -> None:
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass


def work_and_stay(seconds: float, done: object, over: object) -> None:
    burn(seconds)
    done.set()  # type: ignore[attr-defined]
    over.wait()  # type: ignore[attr-defined]


def test_a_process_that_works_has_a_core_and_one_that_waits_has_none() -> None:
    counted = Throughput(tiny_config(), 1, torch.device("cpu"))
    began, used = time.perf_counter(), time.process_time()
    burn(0.4)
    working = counted.read()["cpu_cores"]
    expected = (time.process_time() - used) / (time.perf_counter() - began)
    assert abs(working - expected) < 0.1, "of the clock that this machine gave it"
    time.sleep(0.5)
    assert counted.read()["cpu_cores"] < 0.2


def test_workers_are_counted_while_they_live_and_once_when_they_have_ended() -> None:
    context = multiprocessing.get_context("fork")
    done, over = context.Event(), context.Event()
    before = cpu_seconds()
    worker = context.Process(target=work_and_stay, args=(0.5, done, over))
    worker.start()
    assert done.wait(60)
    alive = cpu_seconds() - before
    assert 0.45 < alive < 1.5, alive
    over.set()
    worker.join()
    ended = cpu_seconds() - before
    assert alive - 0.05 <= ended < alive + 0.4, (alive, ended)
