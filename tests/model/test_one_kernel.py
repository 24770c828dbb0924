"""The attention that a GPU runs, all sequences in one call, against one call for each sequence: with numbers, on a CPU.

Both stages, loss and every gradient, under both of the kernels that a GPU has for it, without dropout and with.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from mbsd.batch import VIEW_NAMES, Batch
from mbsd.config.stages import SdmiConfig
from mbsd.model.attention import AttentionPlan
from mbsd.model.heads import MbsdForMaskedModelling, MbsdForMatching
from mbsd.stages.masked import MaskedObjective
from mbsd.stages.matching import MatchingObjective
from mbsd.stages.stage import Objective
from tests.model.reference import (
    MASK,
    MIXED,
    Corruption,
    Weights,
    gradient_deviations,
    hand_batch,
    random_samples,
    randomise,
    tiny_config,
    trainable,
)
from tests.model.varlen_on_cpu import Draws, varlen_on_cpu

TOLERANCE = 1e-5
LAYERS = 2
TITLES = ((None, 8, True), (None, 3, True), (None, None, True), (None, 17, False), (None, 6, True))
CORRUPTION = Corruption(
    words={(0, 2): MASK, (1, 1): 7, (3, 4): MASK, (3, 11): MASK},
    patches={(0, 0): "mask", (0, 3): (1, 2), (1, 1): "keep", (3, 2): "mask"},
)
OPERATORS = [f"aten::_{name}_attention_{way}" for name in ("flash", "efficient") for way in ("forward", "backward")]


def training(stage: str, dropout: float) -> tuple[Objective, Batch]:
    """A stage's objective with dropout of this share everywhere, in training, and a batch of sequences of 2 to 21."""
    config = tiny_config(
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, num_hidden_layers=LAYERS,
        max_position_embeddings=32,
    )  # fmt: skip
    objective: Objective
    if stage == "masked":
        objective = MaskedObjective(MbsdForMaskedModelling(config))
        batch = hand_batch(random_samples(TITLES, seed=41), ("full",), config, CORRUPTION)
    else:
        objective = MatchingObjective(MbsdForMatching(config), SdmiConfig())
        labels = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
        batch = hand_batch(random_samples(MIXED, seed=42), VIEW_NAMES, config, labels=labels)
    randomise(objective, seed=43)
    return objective.train(), batch


def loss_and_gradients(objective: Objective, batch: Batch) -> tuple[Tensor, Weights]:
    torch.manual_seed(7)  # of all dropout but that of attention weights
    loss = objective(batch)["loss"]
    weights = trainable(objective)
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
    return loss.detach(), dict(zip(weights, gradients, strict=True))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kernel", ["flash", "efficient"])
@pytest.mark.parametrize("stage", ["masked", "matching"])
def test_one_call_for_all_sequences_trains_as_one_for_each(stage: str, kernel: str, dropout: float) -> None:
    objective, batch = training(stage, dropout)
    assert AttentionPlan.of(batch.views).offsets_S is None
    with Draws() as draws:
        expected, expected_gradients = loss_and_gradients(objective, batch)
    assert draws.count == (LAYERS * len(batch.views.lengths) if dropout else 0)

    with varlen_on_cpu(kernel) as kernels:
        found, gradients = loss_and_gradients(objective, batch)
    assert kernels.calls == ["forward"] * LAYERS + [f"{kernel} backward"] * LAYERS
    assert abs(found - expected) < 1e-6 * abs(expected)
    deviations = gradient_deviations(gradients, expected_gradients)
    assert {name: d for name, d in deviations.items() if not d < TOLERANCE} == {}


def test_dropped_weights_are_felt() -> None:
    """Other masks give another loss, so that the test above compares masks too."""
    objective, batch = training("matching", 0.3)
    losses = []
    for shift in (0, 1):
        with Draws() as draws:
            draws.count = shift
            losses.append(loss_and_gradients(objective, batch)[0])
    assert abs(losses[0] - losses[1]) > 1e-3 * abs(losses[0])


def test_no_kernel_stays_behind() -> None:
    """A CPU has none before, both inside, none after, even where the block ends by an error."""

    def there() -> list[bool]:
        return [torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU") for name in OPERATORS]

    assert there() == [False] * 4
    for ends in (nullcontext(), pytest.raises(ZeroDivisionError)):
        with ends, varlen_on_cpu("flash"):
            assert there() == [True] * 4
            if not isinstance(ends, nullcontext):
                raise ZeroDivisionError
        assert there() == [False] * 4
