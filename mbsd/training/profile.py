"""A trace of some steps by torch's profiler: `run.profile`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule, supported_activities, tensorboard_trace_handler

FOLDER = "profile"
# Steps that are left out: in the first ones memory is allocated and kernels are chosen; in those of the warm-up the
# profiler itself gets going.
WAIT, WARM_UP = 3, 2


@contextmanager
def profiled(steps: int, run_folder: Path, rank: int) -> Iterator[Callable[[], object]]:
    """Trace `steps` steps inside the block, which calls what it is given after each of its steps.

    A Chrome trace for TensorBoard's profiler plugin or https://ui.perfetto.dev is written to the folder `profile` of
    the run, one of each rank, when the last of them is through; a run that ends before has none. 0: nothing is traced.
    """
    if steps == 0:
        yield lambda: None
        return
    activities = supported_activities() & {ProfilerActivity.CPU, ProfilerActivity.CUDA}
    handler = tensorboard_trace_handler(str(run_folder / FOLDER), worker_name=f"rank-{rank:04d}")
    plan = schedule(wait=WAIT, warmup=WARM_UP, active=steps, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=handler, record_shapes=True) as tracer:
        yield tracer.step
