"""LAMB on a CUDA device: the textbook's weights, and no wait for the device after the first step."""

from __future__ import annotations

import pytest
import torch

from mbsd.optim.groups import parameter_groups
from mbsd.optim.lamb import Lamb
from tests.optim.textbook import (
    BETA1,
    BETA2,
    EPS,
    STEPS,
    WEIGHT_DECAY,
    Awkward,
    learning_rate,
    mean_gradients,
    textbook_lamb,
    worst_relative_error,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("adapt_excluded", [False, True])
def test_equals_the_textbook_without_waiting(adapt_excluded: bool) -> None:
    module = Awkward()
    gradients = mean_gradients(module, world_size=1, accumulation=1, clip=0.0)
    expected, _ = textbook_lamb(module, gradients, adapt_excluded)
    module.cuda()
    groups = parameter_groups(module.named_parameters(), WEIGHT_DECAY, adapt_excluded)
    optimizer = Lamb(groups, betas=(BETA1, BETA2), eps=EPS)
    for step in range(STEPS):
        for name, p in module.named_parameters():
            p.grad = gradients(step)[name].float().cuda()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step asks what has no gradient
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert worst_relative_error(module.cpu(), expected) < 1e-6
