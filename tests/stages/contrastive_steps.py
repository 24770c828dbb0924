"""Small contrastive steps on any number of ranks and micro-steps; beside them the whole global batch by autograd."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mbsd.batch import NO_KEY, Batch
from mbsd.config.data import DataConfig
from mbsd.config.model import ModelConfig
from mbsd.config.run import PretrainConfig, RunConfig
from mbsd.config.stages import ContrastiveConfig
from mbsd.data.shape_buckets import black_images, fill_up
from mbsd.model.execution import prepare_execution
from mbsd.model.heads import MbsdForContrastive
from mbsd.stages.contrastive import ContrastiveObjective
from mbsd.training.engine import build_engine
from tests.model.reference import Sample, hand_batch, random_samples, randomise, tiny_config

NUM = 16  # samples of a global batch: one for each of 4 micro-steps of 4 ranks
SIDE = 32
# Twice each: titles without a picture, a picture without a title, and neither.
LAYOUT = 2 * ((None, 5, True), (None, 3, True), (None, 4, False), (None, None, True), (None, 7, True), (None, 2, True),
              (None, None, False), (None, 6, True))  # fmt: skip
# Products: 0 = 4 = 6, 1 = 2 by another kind of key, 5 = 13, 9 = 10; the others are alone.
KEYS = ((1, NO_KEY), (2, 7), (NO_KEY, 7), (3, NO_KEY), (1, 8), (4, NO_KEY), (1, NO_KEY), (NO_KEY, NO_KEY),
        (5, NO_KEY), (6, 9), (6, 10), (7, NO_KEY), (8, 11), (4, 12), (9, NO_KEY), (NO_KEY, NO_KEY))  # fmt: skip
VIEWS = ("text", "image")


@dataclass(frozen=True)
class Variation:
    """How the objective is built and run."""

    settings: ContrastiveConfig = dataclasses.field(default_factory=lambda: ContrastiveConfig(dim=6, chunk=3))
    dropout: float = 0.1
    dtype: torch.dtype = torch.float64
    checkpointing: bool = False
    compiler: str = ""  # of torch.compile; none: as it is
    bucket: int = 1
    log_scale: float = 1.0

    def objective(self, kind: type[ContrastiveObjective] = ContrastiveObjective) -> ContrastiveObjective:
        """A model of two layers with weights that matter."""
        config = tiny_config(
            image_size=SIDE, patchify_strides=(4, 4), patchify_channels=(6,), projection_dim=self.settings.dim,
            projection=self.settings.projection, logit_bias=self.settings.loss == "sigmoid",
            hidden_dropout_prob=self.dropout, attention_probs_dropout_prob=self.dropout,
        )  # fmt: skip
        model = MbsdForContrastive(config)
        randomise(model, seed=3)
        with torch.no_grad():
            model.logit_scale.fill_(self.log_scale)
        execution = ModelConfig(activation_checkpointing=self.checkpointing, compile=bool(self.compiler))
        prepare_execution(
            model, PretrainConfig(RunConfig("", max_steps=1), DataConfig("", token_bucket=self.bucket), execution),
            backend=self.compiler or "inductor",
        )  # fmt: skip
        return kind(model, self.settings).to(self.dtype).train()

    def batch(self, rows: range, seed: int) -> Batch:
        """These rows of the global batch that `seed` names."""
        config = tiny_config(image_size=SIDE, patchify_strides=(4, 4), patchify_channels=(6,))
        samples = samples_of(seed)[rows.start : rows.stop]
        batch = hand_batch(samples, VIEWS, config)
        batch = dataclasses.replace(
            batch,
            keys_BK=torch.tensor(KEYS[rows.start : rows.stop]),
            has_text=torch.tensor([sample.title is not None for sample in samples]),
        )
        if self.bucket > 1:
            num = len(batch.images)
            fill = dict(num_images=num, fill_images=len(rows) - num, patches_per_image=config.num_patches)
            batch = fill_up(batch, self.bucket, **fill)
            batch = dataclasses.replace(batch, images=black_images(batch.images, len(rows)))
        return batch


def samples_of(seed: int) -> list[Sample]:
    """The global batch of this number."""
    return random_samples(LAYOUT, seed=seed, side=SIDE)


def micro_batches(variation: Variation, seed: int, rank: int, world_size: int, accumulation: int) -> list[Batch]:
    """A rank's part of a global batch, as the loader cuts it: micro-step after micro-step, rank after rank."""
    size = NUM // (world_size * accumulation)
    firsts = [(micro * world_size + rank) * size for micro in range(accumulation)]
    return [variation.batch(range(first, first + size), seed) for first in firsts]


def seed_of(rank: int) -> int:
    """What a rank draws its dropout from."""
    return 100 + rank


def step_gradients(
    objective: ContrastiveObjective, batches: Sequence[Batch], rank: int
) -> tuple[Tensor, dict[str, Tensor], bool]:
    """Loss and gradients of one step as the engine makes them: the mean over micro-steps and ranks (collective).

    And whether the random state at its end is that of one pass.
    """
    torch.manual_seed(seed_of(rank))
    with torch.no_grad():
        for batch in batches:
            objective.model(batch)
    after_one_pass = torch.get_rng_state()
    torch.manual_seed(seed_of(rank))
    objective.zero_grad()
    contexts = objective.contexts(batches)
    mean = torch.zeros((), dtype=torch.float64)
    for batch, context in zip(batches, contexts, strict=True):
        losses = objective(batch, context)
        (losses["loss"] / len(batches)).backward()
        mean += losses["loss"].detach() / len(batches) / dist.get_world_size()
    ends_there = torch.equal(torch.get_rng_state(), after_one_pass)
    dist.all_reduce(mean)
    gradients = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            gradients[name] = parameter.grad.clone()
            dist.all_reduce(gradients[name])
            gradients[name] /= dist.get_world_size()
    return mean, gradients, ends_there


def autograd_gradients(
    objective: ContrastiveObjective, variation: Variation, world_size: int, accumulation: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The same from one graph of all rows of all ranks, under the same dropout; no collective call."""
    objective.zero_grad()
    outputs, batches = [], []
    for rank in range(world_size):
        torch.manual_seed(seed_of(rank))
        for batch in micro_batches(variation, 0, rank, world_size, accumulation):
            outputs.append(objective.model(batch))
            batches.append(batch)
    image, text = (torch.cat([getattr(o, f"{name}_embeds") for o in outputs]) for name in ("image", "text"))
    has_image, has_text = torch.cat([b.has_image for b in batches]), torch.cat([b.has_text for b in batches])
    keys = torch.cat([b.keys_BK for b in batches])
    same = ((keys[:, None] == keys) & (keys != NO_KEY)).any(-1) | torch.eye(len(keys), dtype=torch.bool)
    model = objective.model
    scores = model.logit_scale.exp() * image @ text.T
    pairs = has_image[:, None] & has_text
    if objective.rule.loss == "sigmoid":
        signs = torch.where(same, 1, -1).to(scores.dtype)
        terms = F.softplus(-signs * (scores + model.logit_bias))
        loss = terms[pairs].sum() / (has_image & has_text).sum()
    else:
        loss = (_direction(scores, same, pairs) + _direction(scores.T, same, pairs.T)) / 2
    loss.backward()
    return loss.detach(), {
        name: parameter.grad.clone() for name, parameter in objective.named_parameters() if parameter.grad is not None
    }


def _direction(scores: Tensor, same: Tensor, pairs: Tensor) -> Tensor:
    terms = []
    for row in range(len(scores)):
        candidates, positives = scores[row][pairs[row]], scores[row][pairs[row] & same[row]]
        if len(positives):
            terms.append(candidates.logsumexp(0) - positives.mean())
    return torch.stack(terms).mean()


def require_whole_gradient(
    rank: int, world_size: int, accumulation: int, variation: Variation, kind: type[ContrastiveObjective]
) -> float:
    """Raise AssertionError where a step's gradient is not that of the whole global batch; returns how far it is off."""
    objective = variation.objective(kind)
    batches = micro_batches(variation, 0, rank, world_size, accumulation)
    loss, found, ends_there = step_gradients(objective, batches, rank)
    expected_loss, expected = autograd_gradients(objective, variation, world_size, accumulation)
    tolerance = 1e-12 if variation.dtype == torch.float64 else 1e-6
    assert found.keys() == expected.keys() and "model.logit_scale" in found
    largest = max(gradient.norm() for gradient in expected.values())
    off = {name: float((found[name] - expected[name]).norm() / largest) for name in expected}
    off["loss"] = float((loss - expected_loss).abs() / expected_loss)
    scale = "model.logit_scale"
    off["theta by itself"] = float((found[scale] - expected[scale]).norm() / expected[scale].norm())
    wrong = {name: value for name, value in off.items() if not value <= tolerance}
    assert not wrong, f"not the whole batch's: {wrong}"
    assert ends_there, "the random state ends elsewhere than after one pass"
    return max(off.values())


def trained(
    rank: int, world_size: int, cases: Sequence[tuple[int, int]], steps: int
) -> list[tuple[list[float], dict[str, Tensor]]]:
    """Losses and weights of some steps with the engine, for each (ZeRO stage, micro-steps)."""
    return [_trained(rank, world_size, zero, accumulation, steps) for zero, accumulation in cases]


def _trained(
    rank: int, world_size: int, zero: int, accumulation: int, steps: int
) -> tuple[list[float], dict[str, Tensor]]:
    variation = Variation(dropout=0.0, dtype=torch.float32)
    objective = variation.objective()
    engine: Any = build_engine(objective, {
        "train_micro_batch_size_per_gpu": NUM // (world_size * accumulation),
        "gradient_accumulation_steps": accumulation, "gradient_clipping": 1.0,
        "zero_optimization": {"stage": zero},
        # With a small eps the noise of a gradient that is 0, as of a key's bias, would move a weight.
        "optimizer": {"type": "Lamb", "params": {"lr": 0.02, "betas": [0.9, 0.98], "eps": 1e-2, "weight_decay": 0.01}},
    })  # fmt: skip
    losses = []
    for step in range(steps):
        batches = micro_batches(variation, step, rank, world_size, accumulation)
        of_step = []
        for batch, context in zip(batches, engine.module.contexts(batches), strict=True):
            found = engine(batch, context)
            engine.backward(found["loss"])
            engine.step()
            of_step.append(float(found["loss"]))
        assert len(set(of_step)) == 1  # each micro-step returns the global batch's
        losses.append(of_step[0])
    return losses, {name: p.detach().clone() for name, p in objective.named_parameters()}
