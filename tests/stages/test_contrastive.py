"""The contrastive step: any number of ranks and micro-steps has the gradient of the whole global batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mbsd.config.stages import ContrastiveConfig
from mbsd.errors import UserError
from mbsd.model.heads import EmbedsOutput
from mbsd.stages.contrastive import ContrastiveObjective
from mbsd.stages.global_batch import Solved
from mbsd.stages.stage import Losses
from mbsd.stages.two_pass import RandomState, Share
from tests.ranks import call
from tests.stages.contrastive_steps import (
    NUM,
    Variation,
    micro_batches,
    require_whole_gradient,
    seed_of,
    step_gradients,
    trained,
)

STEPS = 3
SOFTMAX = ContrastiveConfig(dim=6, chunk=3)
VARIATIONS = {
    "softmax": Variation(),
    "sigmoid, one projection": Variation(ContrastiveConfig(dim=6, projection="shared", loss="sigmoid")),
    "activation checkpointing": Variation(checkpointing=True),
    "compiled": Variation(compiler="aot_eager"),
    "filled batches": Variation(bucket=16),
    "float32": Variation(dtype=torch.float32),
}
EXECUTED = ("activation checkpointing", "compiled", "filled batches")


@pytest.mark.distributed
def test_ranks_micro_steps_and_zero_stages_train_the_same_weights() -> None:
    (expected_losses, expected), *_ = call(trained, 1, [(0, 1)], STEPS)[0]
    assert expected_losses[0] != expected_losses[-1]
    for world_size in (1, 2, 4):
        cases = [(zero, accumulation) for zero in (0, 1, 2) for accumulation in (1, 2, 4)]
        for rank in call(trained, world_size, cases, STEPS):
            for case, (losses, weights) in zip(cases, rank, strict=True):
                assert losses == pytest.approx(expected_losses, rel=1e-6), (world_size, case)
                for name, weight in expected.items():
                    assert (weights[name] - weight).norm() <= 1e-6 * max(weight.norm(), 1), (world_size, case, name)


def whole_gradients(rank: int, world_size: int, accumulations: tuple[int, ...], names: tuple[str, ...]) -> None:
    for name in names:
        for accumulation in accumulations:
            require_whole_gradient(rank, world_size, accumulation, VARIATIONS[name], ContrastiveObjective)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("world_size", "accumulations", "names"),
    [
        (1, (1, 2, 4), ("softmax", "sigmoid, one projection", "float32")),
        (1, (1, 2), EXECUTED),
        (2, (1, 2, 4), ("softmax", "float32")),
        (4, (1, 2, 4), ("softmax", "float32")),
    ],
)
def test_a_step_has_the_gradient_of_the_whole_batch(
    world_size: int, accumulations: tuple[int, ...], names: tuple[str, ...]
) -> None:
    """With dropout, against one graph of all rows under the same masks; the random state ends where one pass ends."""
    call(whole_gradients, world_size, accumulations, names)


class OtherMasks(ContrastiveObjective):
    """The mistake: the second pass draws new masks."""

    def _second_pass(self, batch: Any, share: Share) -> Losses:
        output: EmbedsOutput = self.model(batch)
        if self.settings.check_passes:
            share.require_same(output)
        return self._losses(output, share.solved, share.num_shares)


class ScaleCountedOften(ContrastiveObjective):
    """The mistake: the scale's gradient is multiplied as the vectors' are."""

    def _log_scale_gradient(self, solved: Solved) -> torch.Tensor:
        return 2 * super()._log_scale_gradient(solved)


class NotTheLastState(ContrastiveObjective):
    """The mistake: what follows the step draws what the step has drawn."""

    def _second_pass(self, batch: Any, share: Share) -> Losses:
        losses = super()._second_pass(batch, share)
        share.start.restore()
        return losses


def what_fails(rank: int, world_size: int) -> dict[str, str]:
    failures = {}
    for kind in (OtherMasks, ScaleCountedOften, NotTheLastState):
        try:
            require_whole_gradient(rank, world_size, 2, Variation(), kind)
        except AssertionError as error:
            failures[kind.__name__] = str(error)
    return failures


@pytest.mark.distributed
def test_the_check_finds_each_mistake() -> None:
    (failures,) = call(what_fails, 1)
    assert failures.keys() == {"OtherMasks", "ScaleCountedOften", "NotTheLastState"}
    assert "theta by itself" in failures["ScaleCountedOften"] and "encoder" not in failures["ScaleCountedOften"]
    assert "encoder" in failures["OtherMasks"] and "random state ends" in failures["NotTheLastState"]


CHECKED = ContrastiveConfig(dim=6, check_passes=True)


def checked_passes(rank: int, world_size: int) -> list[str]:
    said = []
    for variation in (Variation(CHECKED), Variation(CHECKED, dtype=torch.bfloat16, checkpointing=True)):
        batches = micro_batches(variation, 0, rank, world_size, 2)
        step_gradients(variation.objective(), batches, rank)
        try:
            step_gradients(variation.objective(OtherMasks if rank == 0 else ContrastiveObjective), batches, rank)
        except UserError as error:
            said.append(str(error))
    return said


@pytest.mark.distributed
def test_passes_that_differ_on_one_rank_stop_all() -> None:
    first, second = call(checked_passes, 2)
    assert first == second and len(first) == 2
    assert first[0].startswith("contrastive.check_passes: the second pass differs from the first by up to 0.")


def alone(variation: Variation) -> tuple[ContrastiveObjective, Losses]:
    objective = variation.objective()
    torch.manual_seed(seed_of(0))
    losses = objective(variation.batch(range(NUM), 0))
    losses["loss"].backward()
    return objective, losses


@pytest.mark.parametrize("above", [0.0, 0.5])
def test_a_temperature_at_its_most_can_come_back_and_go_no_further(above: float) -> None:
    most, gradients = 2.0, []
    for sign in (1, -1):  # equal pictures and titles would raise it, opposite ones would lower it
        variation = Variation(ContrastiveConfig(dim=6, temperature_max=most), log_scale=math.log(most) + above)
        objective = variation.objective()
        batch = variation.batch(range(NUM), 0)
        e = torch.nn.functional.normalize(torch.eye(NUM, 6, dtype=torch.float64) + 0.1, dim=-1)
        objective.model.forward = lambda batch, e=e, sign=sign: EmbedsOutput(e, sign * e)
        losses = objective(batch)
        losses["loss"].backward()
        gradients.append(objective.model.logit_scale.grad.item())
        assert losses["temperature"].item() == pytest.approx(most)
    assert gradients[0] == 0 and gradients[1] > 0


def test_a_constant_temperature_is_no_parameter_of_the_optimizer() -> None:
    objective, losses = alone(Variation(ContrastiveConfig(dim=6, temperature=20.0), dtype=torch.float32))
    assert losses["temperature"] == 20
    assert not objective.model.logit_scale.requires_grad and objective.model.logit_scale.grad is None
    assert objective.model.logit_scale.item() == pytest.approx(math.log(20))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_compare_in_float32(dtype: torch.dtype) -> None:
    """The loss of the vectors that a half model gives is that of float32."""
    variation = Variation(dropout=0.0, dtype=dtype)
    objective, losses = alone(variation)
    batch = variation.batch(range(NUM), 0)
    output = objective.model(batch)
    assert {output.text_embeds.dtype, output.image_embeds.dtype, losses["loss"].dtype} == {torch.float32}
    exact = Variation(dropout=0.0).objective()
    exact.model.logit_scale.data.copy_(objective.model.logit_scale)
    exact.model.forward = lambda batch: EmbedsOutput(output.text_embeds.double(), output.image_embeds.double())
    assert losses["loss"].item() == pytest.approx(exact(batch)["loss"].item(), rel=1e-6)


def validated(rank: int, world_size: int, num: int) -> dict[str, float]:
    variation = Variation(dropout=0.0, dtype=torch.float32)
    own = range(rank, num, world_size)
    batches = [variation.batch(range(row, row + 1), 0) for row in own]
    return variation.objective().eval().validate(batches).metrics


@pytest.mark.distributed
def test_validation_is_the_same_on_any_number_of_ranks() -> None:
    variation = Variation(dropout=0.0, dtype=torch.float32)
    expected = variation.objective()(variation.batch(range(NUM), 0))
    (one,) = call(validated, 1, NUM)
    del expected["empty_steps"]
    assert {name: one[name] for name in expected} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-5, abs=1e-6
    )
    for rank in call(validated, 4, NUM):
        assert rank == pytest.approx(one, rel=1e-6, abs=1e-7)
    two, *others = call(validated, 4, 2)  # two ranks have no sample
    assert all(other == two for other in others)


def test_random_states_come_back() -> None:
    state = RandomState.now(torch.device("cpu"))
    first = torch.rand(3)
    state.restore()
    assert torch.equal(torch.rand(3), first)
