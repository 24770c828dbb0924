"""A safetensors file in host memory: laid out once, filled at each save, written behind the training loop.

The step waits for one copy into memory that is already there (page-locked where the tensors are on a GPU). The bytes
are those of the file (https://huggingface.co/docs/safetensors: 8 bytes of header length, a JSON header, the tensors
without holes), so that writing needs neither another copy nor the interpreter's lock.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

import torch
from torch import Tensor

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class HostBuffer:
    """The bytes of a safetensors file with room for tensors of these names, types and shapes.

    Args:
        tensors: what will be saved; only types and shapes are read.
        metadata: of the file.
        pinned: page-locked memory, for tensors on a GPU.
    """

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, pinned: bool) -> None:
        self.kind = _kind(tensors)
        # Widest types first: then every tensor begins at a multiple of its element's size.
        order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        end = 0
        spans = {}
        for name in order:
            tensor = tensors[name]
            start, end = end, end + tensor.numel() * tensor.element_size()
            header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
            spans[name] = (start, end)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        first = 8 + len(text)
        self.bytes = torch.empty(first + end, dtype=torch.uint8, pin_memory=pinned)
        self.bytes[:first] = torch.frombuffer(bytearray(struct.pack("<Q", len(text)) + text), dtype=torch.uint8)
        self.bytes[first:].zero_()  # touched now, not in the first save
        self._views = {
            name: self.bytes[first + start : first + end].view(tensors[name].dtype).view(tensors[name].shape)
            for name, (start, end) in spans.items()
        }

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether these tensors have the names, types and shapes that the image was laid out for."""
        return self.kind == _kind(tensors)

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors in; where they are on a GPU, the copies have only been queued when it returns."""
        for name, view in self._views.items():
            view.copy_(tensors[name], non_blocking=True)

    def view(self) -> memoryview:
        """The file's bytes."""
        return self.bytes.numpy().data


def _kind(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
