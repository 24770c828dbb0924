"""How much memory a step of two passes takes: MICRO_STEPS micro-batches against one, through the stage itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from mbsd.batch import NO_KEY, Batch
from mbsd.config.stages import ContrastiveConfig
from mbsd.data.views import pack
from mbsd.model.heads import MbsdForContrastive
from mbsd.model.mbsd import MbsdConfig
from mbsd.objectives.contrastive import Rule
from mbsd.parallel.world import World
from mbsd.stages.contrastive import ContrastiveObjective
from mbsd.tools.bench.peak import peak_bytes
from mbsd.tools.bench.step_batches import draw

MICRO_STEPS = 8
SMALL = {"num_hidden_layers": 4, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048}


def measure_passes(
    world: World, micro_batch: int, rule: Rule, sizes: dict[str, Any] | None = None
) -> dict[str, dict[str, float]]:
    """Measure on the one rank of the group that is up.

    Args:
        micro_batch: samples.
        rule: of the loss.
        sizes: of MbsdConfig; None: `SMALL`.

    Returns:
        Number of micro-steps -> `samples` of the step; `held_bytes` of weights and gradients; `step_bytes`, the most
        that the step holds beyond them, its batches included; `x_one`, both together over those of one micro-step.
    """
    torch.manual_seed(0)
    sigmoid = rule.loss == "sigmoid"
    config = MbsdConfig(**(sizes or SMALL), projection_dim=ContrastiveConfig.dim, logit_bias=sigmoid)
    settings = ContrastiveConfig(loss=rule.loss, targets=rule.targets, chunk=rule.chunk)
    objective = ContrastiveObjective(MbsdForContrastive(config), settings).to(world.device).train()
    numbers: dict[str, dict[str, float]] = {}

    def step(micro_steps: int) -> None:
        batches = [_batch(config, micro_batch).to(world.device) for _ in range(micro_steps)]
        for batch, context in zip(batches, objective.contexts(batches), strict=True):
            losses = objective(batch, context)
            (losses["loss"] / micro_steps).backward()

    step(2)  # makes the gradients, which stay
    held = sum(2 * p.nbytes for p in objective.parameters() if p.requires_grad)
    for micro_steps in (1, MICRO_STEPS):
        objective.zero_grad(set_to_none=False)
        found = peak_bytes(partial(step, micro_steps), world.device)
        numbers[str(micro_steps)] = {
            "samples": micro_steps * micro_batch,
            "held_bytes": held,
            "step_bytes": found,
            "x_one": (found + held) / (numbers["1"]["step_bytes"] + held) if "1" in numbers else 1.0,
        }
    return numbers


def _batch(config: MbsdConfig, num: int) -> Batch:
    """Titles of drawn lengths and pictures of drawn pixels, of different products; the same each time.

    Of other lengths, the longest of more micro-batches would take more memory whatever the passes do.
    """
    drawn = draw(config, num, masked=True, longest=False, seed=0)
    ids_N, positions_N, types_N, plan = pack(drawn.texts, [True] * num, ("text", "image"), config.num_patches)
    return Batch(
        ids_N, positions_N, types_N, drawn.images, plan, torch.arange(num),
        keys_BK=torch.full((num, 1), NO_KEY), has_text=torch.ones(num, dtype=torch.bool),
    )  # fmt: skip
