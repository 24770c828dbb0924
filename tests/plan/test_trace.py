"""What is traced is what a GPU runs: its kernels, what they keep, and what is alive beside the weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nested import nested_tensor_from_jagged

from mbsd.tools.plan.gpus import GPUS
from mbsd.tools.plan.shapes import runs_flash
from mbsd.tools.plan.trace import Attention, Ledger, trace_step
from tests.model.reference import tiny_config

LENGTHS = (30, 100, 7)
T, LONGEST = sum(LENGTHS), 128  # the memory-efficient kernel's sums are for rows in steps of 32
HEADS, WIDTH = 12, 64
HALF, SINGLE = torch.float16, torch.float32


class Attend(nn.Module):
    """Jagged attention of `LENGTHS` alone, between a tensor that stands for a layer's output and its sum."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.empty(3, T, HEADS, WIDTH, device="meta", dtype=HALF))
        self.dropout = dropout

    def forward(self) -> Tensor:
        offsets = torch.empty(len(LENGTHS) + 1, device="meta", dtype=torch.int32)
        q, k, v = (
            nested_tensor_from_jagged(rows, offsets, min_seqlen=min(LENGTHS), max_seqlen=max(LENGTHS)).transpose(1, 2)
            for rows in (self.rows * 2).unbind()
        )
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout)
        assert out.shape[:2] == q.shape[:2] and out.shape[-1] == WIDTH
        return out.transpose(1, 2).values().sum()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(("flash", "sums"), [(True, HEADS * T), (False, len(LENGTHS) * HEADS * LONGEST)])
def test_attention_keeps_its_output_and_sums(flash: bool, sums: int, dropout: float) -> None:
    """Beside the rows of query, key and value: the output in half precision, sums in float32, random state, lengths."""
    step = Attend(dropout)
    trace = trace_step(step, step, Attention(LENGTHS, flash))
    kept = 2 * 4 * T * HEADS * WIDTH + 4 * sums
    small = 100  # bytes of offsets and random state
    assert kept <= trace.saved <= kept + small
    products = 2 * HEADS * WIDTH * sum(n * n for n in LENGTHS)
    assert sorted(k.flops for k in trace.kernels if k.flops) == [2 * products, 5 * products]


def test_dropout_keeps_a_byte_for_each_element() -> None:
    step = nn.Linear(1000, 1000, bias=False, device="meta", dtype=HALF)
    x = torch.empty(300, 1000, device="meta", dtype=HALF)
    for p, kept in ((0.1, 300_000), (0.0, 0)):
        trace = trace_step(step, lambda p=p: F.dropout(step(x), p).sum(), Attention((300,), True))
        assert trace.saved == 2 * 300_000 + kept


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_weights_are_not_counted_as_alive(device: str) -> None:
    """A layer reads its weights through a view of them; what it makes are 10 rows of 100."""
    weight, rows = torch.zeros(100, 2000, device=device), torch.zeros(10, 2000, device=device)
    with Ledger() as ledger:
        out = F.linear(rows, weight).relu()
    assert ledger.peak == 2 * 4 * out.numel()
    with Ledger() as ledger:
        F.linear(rows, weight).relu_()
    assert ledger.peak == 4 * out.numel()
    assert len(ledger.kernels) == 2  # the view is none; what is done in place is one


@pytest.mark.parametrize("gpu", GPUS)
def test_the_kernel_of_each_gpu(gpu: str) -> None:
    """Flash needs half precision, sm_80, and heads of a multiple of 8, up to 256."""
    capability, config = GPUS[gpu].capability, tiny_config(hidden_size=768, num_attention_heads=12)
    assert runs_flash(capability, HALF, config) is (gpu != "v100-32g")
    assert runs_flash(capability, torch.bfloat16, config) is (gpu != "v100-32g")
    assert not runs_flash(capability, SINGLE, config)
    for heads in (64, 2):  # of 12 and of 384
        assert not runs_flash(capability, HALF, tiny_config(hidden_size=768, num_attention_heads=heads))
