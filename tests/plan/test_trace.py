"""What is traced is what a GPU runs: its kernels, what they keep, and what is alive beside the weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbsd.model.attention import AttentionPlan, meta_device_as, packed_attention, runs_flash
from mbsd.tools.plan.gpus import GPUS
from mbsd.tools.plan.trace import Ledger, trace_step
from tests.model.reference import MIXED, hand_batch, random_samples, tiny_config

LENGTHS = (30, 100, 7)
T, LONGEST = sum(LENGTHS), 128  # the memory-efficient kernel's sums are for rows in steps of 32
HEADS, WIDTH = 12, 64
HALF, SINGLE = torch.float16, torch.float32


class Attend(nn.Module):
    """Attention over sequences of `LENGTHS` alone, between a tensor that stands for a layer's output and its sum."""

    def __init__(self, capability: tuple[int, int], dropout: float) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.empty(3, 1, HEADS, T, WIDTH, device="meta", dtype=HALF))
        offsets_S = torch.empty(len(LENGTHS) + 1, device="meta", dtype=torch.int32)
        self.plan, self.dropout = AttentionPlan(LENGTHS, offsets_S, capability), dropout

    def forward(self) -> Tensor:
        q, k, v = (self.rows * 2).unbind()
        q = q[:, :, : sum(self.plan.queries)]
        out, _ = packed_attention(self, q, k, v, None, plan=self.plan, dropout=self.dropout)
        assert out.shape == (1, sum(self.plan.queries), HEADS, WIDTH)
        return out.sum()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(("capability", "sums"), [((9, 0), HEADS * T), ((7, 0), len(LENGTHS) * HEADS * LONGEST)])
def test_attention_keeps_its_output_and_sums(capability: tuple[int, int], sums: int, dropout: float) -> None:
    """Beside the rows of query, key and value: the output in half precision, sums in float32, random state, lengths."""
    step = Attend(capability, dropout)
    trace = trace_step(step, step, LENGTHS)
    kept = 2 * 4 * T * HEADS * WIDTH + 4 * sums
    small = 100  # bytes of offsets and random state
    assert kept <= trace.saved <= kept + small
    products = 2 * HEADS * WIDTH * sum(n * n for n in LENGTHS)
    assert sorted(k.flops for k in trace.kernels if k.flops) == [2 * products, 5 * products]


@pytest.mark.parametrize("capability", [(9, 0), (7, 0)])
def test_attention_of_the_first_tokens_alone_is_counted_as_that(capability: tuple[int, int]) -> None:
    step = Attend(capability, 0.0)
    step.plan = dataclasses.replace(step.plan, first_alone=True)
    trace = trace_step(step, step, LENGTHS)
    products = 2 * HEADS * WIDTH * T
    assert sorted(k.flops for k in trace.kernels if k.flops) == [2 * products, 5 * products]


def test_the_meta_device_stands_for_a_gpu() -> None:
    views = hand_batch(random_samples(MIXED, seed=4), ("full",), tiny_config()).to("meta").views
    with meta_device_as((7, 0)):
        assert AttentionPlan.of(views).capability == (7, 0)
    assert AttentionPlan.of(views).capability == (9, 0)


def test_dropout_keeps_a_byte_for_each_element() -> None:
    step = nn.Linear(1000, 1000, bias=False, device="meta", dtype=HALF)
    x = torch.empty(300, 1000, device="meta", dtype=HALF)
    for p, kept in ((0.1, 300_000), (0.0, 0)):
        trace = trace_step(step, lambda p=p: F.dropout(step(x), p).sum(), (300,))
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
    capability = GPUS[gpu].capability
    assert runs_flash(capability, HALF, 64) is runs_flash(capability, torch.bfloat16, 64) is (gpu != "v100-32g")
    assert not runs_flash(capability, SINGLE, 64)
    for head_size in (12, 384):
        assert not runs_flash(capability, HALF, head_size)
