"""Read by every Python that starts on the fake device, before anything else."""

import ctypes
import faulthandler
import signal

STACK = signal.SIGRTMIN + 7  # nobody else's

_device = ctypes.CDLL(None)


def record_stacks() -> None:
    """Have this process write Python's stack to its record; a forked process has to ask anew."""
    if _device.fake_cuda_file() >= 0:
        faulthandler.register(STACK, file=_device.fake_cuda_file(), all_threads=False)
        _device.fake_cuda_stacks_by(int(STACK))


if hasattr(_device, "fake_cuda_file"):
    import wrapt

    from tests.fake_cuda.answers import ANSWERS

    record_stacks()
    for _module, _answer in ANSWERS.items():
        wrapt.register_post_import_hook(_answer, _module)
