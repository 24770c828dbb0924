"""Run on the fake device: everything that the other tests forbid, so that the device is seen to tell of it."""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.fake_cuda.marks import mark


class Id(ctypes.Structure):
    """NCCL's."""

    _fields_ = [("internal", ctypes.c_char * 128)]


def reduce_host_memory() -> None:
    """What torch would refuse before: NCCL is given a tensor of the host."""
    device, communicator, numbers = ctypes.CDLL(None), ctypes.c_void_p(), torch.ones(4)
    assert device.ncclCommInitRank(ctypes.byref(communicator), 1, Id(), 0) == 0
    address = ctypes.c_void_p(numbers.data_ptr())
    assert device.ncclAllReduce(address, address, ctypes.c_size_t(4), 7, 0, communicator, None) == 0


def main() -> None:
    numbers = torch.arange(6.0, device="cuda")
    mark("start")
    numbers.sum().item()
    mark("item")
    torch.ones(3).to("cuda")
    mark("pageable")
    torch.ones(3).pin_memory().to("cuda", non_blocking=True)
    mark("pinned")
    torch.cuda.synchronize()
    mark("synchronize")
    back = torch.tensor([2.0, 3.0, 5.0]).to("cuda:1").to("cpu")
    assert back.tolist() == [2.0, 3.0, 5.0], "copies are done"
    mark("other device")
    try:
        torch.cuda.set_device(7)
    except torch.AcceleratorError as error:
        assert "invalid device ordinal" in str(error)
    mark("no such device")
    q = torch.zeros(1, 2, 8, 16, device="cuda", dtype=torch.float16)
    with sdpa_kernel(SDPBackend.MATH):
        F.scaled_dot_product_attention(q, q, q)
    mark("math attention")
    try:
        torch.empty(81 << 30, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        mark("out of memory")
    kept = torch.empty(5 << 20, dtype=torch.float32, device="cuda")
    mark(f"reserved {torch.cuda.memory_reserved()} on cuda:{kept.device.index}")
    reduce_host_memory()
    mark("host memory")
    torch.cuda.cudart().cudaProfilerStart()
    mark("profiler")


if __name__ == "__main__":
    main()
