"""Catalogue → batches: what is left for the training process is done in a thread, ahead of the step that needs it.

DALI decodes in the training process, and a copy to a GPU takes its time: both overlap with the step before. On a GPU
all of it runs on a stream of its own, and a step's stream waits for the batch, never the host.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from mbsd.batch import Batch

P = TypeVar("P")

POLL = 0.1  # seconds between two looks whether anybody still wants a batch


def prefetched(
    prepared: Iterator[P], finish: Callable[[P], Batch], device: torch.device, depth: int = 2
) -> Iterator[Batch]:
    """finish(p) on `device` for each p, in order, with `depth` of them ready.

    Closing the iterator (or leaving its loop and dropping it) ends the thread. What `prepared` or `finish` raises is
    raised here, at its place in the order.
    """
    ready: queue.Queue[tuple[Batch | None, torch.cuda.Event | None, BaseException | None]] = queue.Queue(depth)
    over = threading.Event()
    stream = side_stream(device) if device.type == "cuda" else None

    def put(item: tuple[Batch | None, torch.cuda.Event | None, BaseException | None]) -> None:
        while not over.is_set():
            try:
                ready.put(item, timeout=POLL)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            if stream is not None:  # a new thread's device is the first one, on which this rank has no business
                torch.cuda.set_device(stream.device)  # as `device`, which may be without a number
            with torch.cuda.stream(stream):  # does nothing where there is none
                for each in prepared:
                    batch = finish(each).to(device, non_blocking=True)
                    put((batch, stream.record_event() if stream is not None else None, None))
                    if over.is_set():
                        return
            put((None, None, None))
        except BaseException as error:  # the training loop has to hear of it
            put((None, None, error))

    thread = threading.Thread(target=work, name="loader-ahead", daemon=True)
    thread.start()
    try:
        while True:
            batch, event, error = ready.get()
            if error is not None:
                raise error
            if batch is None:
                return
            if event is not None:
                now = torch.cuda.current_stream(device)
                now.wait_event(event)
                batch.record_stream(now)  # its memory is not given to the next batch before the step is through
            yield batch
    finally:
        over.set()
        thread.join()


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which batches come to a GPU: one for all loaders of a process.

    Freed memory stays with the stream that it was allocated on: with a stream for each loader, each validation would
    leave its batches' memory behind.
    """
    return torch.cuda.Stream(device)
