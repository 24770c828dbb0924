"""Worker processes that read and normalise pictures, each picture under limits of time, bytes, pixels and memory.

A decoder that hangs, crashes or is killed for its memory takes its process with it, and a fresh one takes its place.
The chunk of pictures it worked on is tried again one by one, and only the guilty one is rejected.
"""

from __future__ import annotations

import multiprocessing
import resource
import signal
from collections.abc import Sequence
from concurrent.futures import Future, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

import psutil
from pebble import ProcessExpired, ProcessPool

from mbsd.catalog.build.image_folder import Place
from mbsd.catalog.build.image_url import AtUrl, read_ahead
from mbsd.catalog.build.normalise import MAX_PIXELS, ImageRejected, NormalisedImage, normalise_image

ATTEMPTS = 3  # of a picture whose pool broke down around it

Result: TypeAlias = NormalisedImage | str | None  # a picture, why it was rejected, or None where there was none


@dataclass(frozen=True)
class Limits:
    """What one picture may cost.

    Attributes:
        pixels: of its header.
        file_bytes: of its file.
        seconds: to read and decode it.
        memory: bytes of address space that a worker may take beyond what it starts with.
    """

    pixels: int = MAX_PIXELS
    file_bytes: int = 256 * 2**20
    seconds: float = 10.0
    memory: int = 512 * 2**20


class PicturePool:
    """`workers` processes, started with the first chunk."""

    def __init__(self, workers: int, max_side: int, limits: Limits):
        self.workers, self._max_side, self._limits = workers, max_side, limits
        # Not fork: the caller may hold threads (Arrow, DuckDB, a progress bar), whose locks a child would inherit.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._pool = self._start()

    def __enter__(self) -> PicturePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.stop()
        self._pool.join()

    def submit(self, places: Sequence[Place | None]) -> Future[list[Result]]:
        """Start on a chunk; give what is returned to `results` in the end."""
        if not any(places):
            done: Future[list[Result]] = Future()
            done.set_result([None] * len(places))
            return done
        if not self._pool.active:
            self._pool.stop()
            self._pool.join()
            self._pool = self._start()
        # Every picture has its own alarm in the worker; this one is for a worker that does not even start on it.
        patience = (len(places) + 1) * self._limits.seconds + 60
        future: Future[list[Result]] = self._pool.schedule(
            normalise_places, (list(places), self._max_side, self._limits), timeout=patience
        )
        return future

    def results(self, places: Sequence[Place | None], future: Future[list[Result]]) -> list[Result]:
        """Wait for the chunk that `submit` returned `future` for: one result a place."""
        try:
            return future.result()
        except (ProcessExpired, TimeoutError, BrokenProcessPool):
            return [None if place is None else self._alone(place) for place in places]

    def _alone(self, place: Place) -> Result:
        for _ in range(ATTEMPTS):
            try:
                return self.submit([place]).result()[0]
            except ProcessExpired as expired:
                return _cause(expired.exitcode or 0, self._limits)
            except TimeoutError:
                return f"took longer than {self._limits.seconds:g} s to read and decode"
            except BrokenProcessPool:
                continue  # somebody ended a worker between two pictures: that says nothing about this one
        raise RuntimeError(f"the processes that decode pictures broke down {ATTEMPTS} times at {place}")

    def _start(self) -> ProcessPool:
        return ProcessPool(self.workers, initializer=_start_worker, initargs=(self._limits,), context=self._context)


def _cause(exitcode: int, limits: Limits) -> str:
    """Why a worker ended at this picture, in words."""
    if exitcode == -signal.SIGALRM:
        return f"took longer than {limits.seconds:g} s to read and decode"
    if exitcode == -signal.SIGKILL:
        return "its decoder was killed, probably for taking too much memory"
    if exitcode < 0:
        return f"its decoder crashed ({signal.Signals(-exitcode).name})"
    return f"its decoder ended with exit code {exitcode}"


def _start_worker(limits: Limits) -> None:
    """Runs once in each worker."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # it ends the process, whatever a decoder is doing
    used = psutil.Process().memory_info().vms
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    allowed = used + limits.memory
    resource.setrlimit(resource.RLIMIT_AS, (allowed if hard == resource.RLIM_INFINITY else min(allowed, hard), hard))


def normalise_places(places: list[Place | None], max_side: int, limits: Limits) -> list[Result]:
    """Runs in a worker: one result a place."""
    at_url = [place for place in places if isinstance(place, AtUrl)]
    signal.setitimer(signal.ITIMER_REAL, limits.seconds)
    ahead = dict(zip(at_url, read_ahead(at_url, limits.file_bytes), strict=True)) if len(at_url) > 1 else {}
    results: list[Result] = []
    for place in places:
        signal.setitimer(signal.ITIMER_REAL, limits.seconds)
        try:
            if place is None:
                results.append(None)
                continue
            data = ahead.pop(place, None) if isinstance(place, AtUrl) else None
            data = place.read(limits.file_bytes) if data is None else data
            results.append(normalise_image(data, max_side, max_pixels=limits.pixels))
        except ImageRejected as rejected:
            results.append(str(rejected))
        except MemoryError:
            results.append("too large to read in the memory there is")
    signal.setitimer(signal.ITIMER_REAL, 0)
    return results
