"""Worker processes that read and normalise pictures, each picture under limits of time, bytes, pixels and memory.

A decoder that hangs, crashes or is killed for its memory ends its process, and a fresh one is started. The chunk of
pictures that it worked on is tried again one by one, and only the picture that ended it is rejected.
"""

from __future__ import annotations

import multiprocessing
import resource
import signal
from collections.abc import Sequence
from concurrent.futures import Future, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import TypeAlias

import psutil
from pebble import ProcessExpired, ProcessPool

from mbsd.catalog.build.image_folder import Place
from mbsd.catalog.build.image_url import AtUrl, prefetch
from mbsd.catalog.build.normalise import NormalisedImage, normalise_image
from mbsd.catalog.build.open_image import ImageRejected, one_thread
from mbsd.catalog.build.options import ImageLimits

ATTEMPTS = 3  # to decode a picture whose pool broke down for another reason

Result: TypeAlias = NormalisedImage | str | None  # a picture, why it was rejected, or None where there was none


class DecodePool:
    """A pool of `workers` processes, started with the first chunk; a context that ends them."""

    def __init__(self, workers: int, max_side: int, limits: ImageLimits):
        self.workers, self._max_side, self._limits = workers, max_side, limits
        # Not fork: the caller may hold threads (Arrow, DuckDB, a progress bar), whose locks a child would inherit.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._pool = self._start()

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.stop()
        self._pool.join()

    def submit(self, places: Sequence[Place | None]) -> Future[list[Result]]:
        """Begin to read and normalise a chunk of pictures; `results` waits for the future that this returns."""
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
        """Return one result for each place of the chunk for which `submit` returned `future`, as soon as it is done."""
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
                continue  # a worker was ended between two pictures, which is not the fault of this one
        raise RuntimeError(f"the processes that decode pictures broke down {ATTEMPTS} times at {place}")

    def _start(self) -> ProcessPool:
        return ProcessPool(self.workers, initializer=_start_worker, initargs=(self._limits,), context=self._context)


def _cause(exitcode: int, limits: ImageLimits) -> str:
    """Return the reason in words why a worker that ended with this code rejected the picture."""
    if exitcode == -signal.SIGALRM:
        return f"took longer than {limits.seconds:g} s to read and decode"
    if exitcode == -signal.SIGKILL:
        return "its decoder was killed, probably for taking too much memory"
    if exitcode < 0:
        return f"its decoder crashed ({signal.Signals(-exitcode).name})"
    return f"its decoder ended with exit code {exitcode}"


def _start_worker(limits: ImageLimits) -> None:
    """Set this worker's limit of memory, and let the alarm of a picture end it, whatever a decoder is doing."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    one_thread()
    used = psutil.Process().memory_info().vms
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    allowed = used + limits.memory
    resource.setrlimit(resource.RLIMIT_AS, (allowed if hard == resource.RLIM_INFINITY else min(allowed, hard), hard))


def normalise_places(places: list[Place | None], max_side: int, limits: ImageLimits) -> list[Result]:
    """Return one result for each place, in a worker; a picture that takes longer than its limit ends the process."""
    at_url = [place for place in places if isinstance(place, AtUrl)]
    signal.setitimer(signal.ITIMER_REAL, limits.seconds)
    prefetched = dict(zip(at_url, prefetch(at_url, limits.file_bytes), strict=True)) if len(at_url) > 1 else {}
    results: list[Result] = []
    for place in places:
        signal.setitimer(signal.ITIMER_REAL, limits.seconds)
        try:
            if place is None:
                results.append(None)
                continue
            data = prefetched.pop(place, None) if isinstance(place, AtUrl) else None
            data = place.read(limits.file_bytes) if data is None else data
            results.append(normalise_image(data, max_side, max_pixels=limits.pixels, max_memory=limits.memory))
        except ImageRejected as rejected:
            results.append(str(rejected))
        except MemoryError:
            results.append("too large to read in the memory there is")
    signal.setitimer(signal.ITIMER_REAL, 0)
    return results
