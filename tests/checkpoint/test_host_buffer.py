"""A host image is the file that safetensors would write: other programs read it, and read back what was in memory."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from mbsd.checkpoint.host_buffer import DTYPES, HostBuffer

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@given(st.lists(st.tuples(st.sampled_from(list(DTYPES)), SHAPES), max_size=8), st.integers(0, 2**31))
def test_what_is_filled_in_is_what_safetensors_reads(
    kinds: list[tuple[torch.dtype, tuple[int, ...]]], seed: int
) -> None:
    torch.manual_seed(seed)
    first, second = (
        {f"t{i}/é": (torch.randn(shape) * 100).to(dtype) for i, (dtype, shape) in enumerate(kinds)} for _ in range(2)
    )
    image = HostBuffer(first, {"format": "pt"}, pinned=False)
    for tensors in (first, second):
        assert image.fits(tensors)
        image.fill(tensors)
        found = load(bytes(image.view()))
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    assert not image.fits({**first, "one more": torch.zeros(1)})
