"""Read by every Python that starts on the fake device, before anything else."""

import ctypes
import faulthandler
import signal

import answers
import wrapt

STACK = signal.SIGRTMIN + 7  # nobody else's

_device = ctypes.CDLL(None)
if hasattr(_device, "fake_cuda_file"):
    if _device.fake_cuda_file() >= 0:
        faulthandler.register(STACK, file=_device.fake_cuda_file(), all_threads=False)
        _device.fake_cuda_stacks_by(int(STACK))
    for _module, _answer in answers.ANSWERS.items():
        wrapt.register_post_import_hook(_answer, _module)
