"""Activation checkpointing, torch.compile, traces: the same numbers, few graphs, a trace that can be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mbsd.batch import VIEW_NAMES, Batch
from mbsd.config.data import DataConfig
from mbsd.config.model import ModelConfig
from mbsd.config.run import BaseConfig, PretrainConfig, RunConfig
from mbsd.config.stages import SdmiConfig
from mbsd.data.shape_buckets import fill_up
from mbsd.model.execution import prepare_execution
from mbsd.model.heads import MbsdForMatching
from mbsd.stages.matching import MatchingObjective
from mbsd.tools.bench.step_batches import draw, packed
from mbsd.tools.plan.trace import SavedBytes
from tests.conftest import Shop
from tests.model.reference import MIXED, gradients_of, hand_batch, random_samples, randomise, tiny_config
from tests.ranks import launch
from tests.training.test_runs import stage_1


def settings(bucket: int = 1, **model: bool) -> BaseConfig:
    return PretrainConfig(RunConfig("", max_steps=1), DataConfig("", token_bucket=bucket), ModelConfig(**model))


def matching(dropout: float = 0.0) -> tuple[MatchingObjective, Batch]:
    config = tiny_config(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    step = MatchingObjective(MbsdForMatching(config), SdmiConfig())
    randomise(step, seed=1)
    labels = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])
    return step, hand_batch(random_samples(MIXED, seed=2), VIEW_NAMES, config, labels=labels)


def loss_and_gradients(step: MatchingObjective, batch: Batch) -> tuple[Tensor, dict[str, Tensor], int]:
    """With dropout drawn from a fixed seed; and the bytes kept for the backward."""
    torch.manual_seed(5)
    with SavedBytes(step) as saved:
        loss = step.train()(batch, None)["loss"]
    loss.backward()
    gradients = {name: p.grad for name, p in step.named_parameters() if p.grad is not None}
    step.zero_grad()
    return loss.detach(), gradients, saved.bytes


def test_activation_checkpointing_keeps_less_and_changes_nothing() -> None:
    step, batch = matching(dropout=0.2)
    loss, gradients, kept = loss_and_gradients(step, batch)
    prepare_execution(step.model, settings(activation_checkpointing=True))
    again, found, less = loss_and_gradients(step, batch)
    assert again == loss and found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-7), name
    assert less < 0.6 * kept


def test_compiled_is_the_same_and_an_epoch_makes_few_graphs() -> None:
    """Batches of many sizes share the graphs of the first ones; with another compiler they would only run longer."""
    from torch._dynamo.utils import counters

    step, batch = matching()
    weights = {name: p for name, p in step.named_parameters() if p.requires_grad}
    expected = step(batch, None)["loss"]
    gradients = gradients_of(expected, weights)
    torch._dynamo.reset()
    counters.clear()
    prepare_execution(step.model, settings(compile=True), backend="aot_eager")
    found = step(batch, None)["loss"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, gradient in gradients_of(found, weights).items():
        assert (gradient - gradients[name]).norm() <= 1e-4 * gradients[name].norm() + 1e-6, name
    config, sizes = step.model.config, set()
    for seed in range(12):
        samples = random_samples([(1 + seed % 3, 2 + seed, True), (2, 3, seed % 2 == 0)], seed=seed)
        batch = hand_batch(samples, VIEW_NAMES, config, labels=torch.tensor([1.0, 0.0]))
        sizes.add(batch.num_tokens)
        step(batch, None)["loss"].backward()
    graphs = counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    assert len(sizes) > 8 and 1 <= graphs <= 4, graphs


def test_filled_batches_of_an_epoch_have_few_sizes() -> None:
    config = tiny_config(max_position_embeddings=144, vocab_size=400)
    sizes, plain = set(), set()
    for seed in range(30):
        batch = packed(draw(config, 16, masked=False, longest=False, seed=seed), config)
        more = fill_up(batch, 512, num_images=16, fill_images=0, patches_per_image=config.num_patches)
        plain.add(batch.views.source_T.shape)
        sizes.add((more.views.source_T.shape, more.input_ids_N.shape, more.views.cu_seqlens.shape))
    assert len(plain) > 20 and len(sizes) <= 5


@pytest.mark.distributed
def test_a_trace_of_some_steps(shop: Shop, tmp_path: Path) -> None:
    """The run folder's trace holds exactly the steps that were asked for, with the products of each."""
    run = tmp_path / "run"
    words = ["--run.max_steps=9", "--run.profile=2", "--run.validate_every=0", "--model.activation_checkpointing=true"]
    launch(1, stage_1(run, shop, *words, "--data.token_bucket=64"), tmp_path / "log")
    (trace,) = (run / "profile").iterdir()
    assert trace.name.startswith("rank-0000.") and ".pt.trace.json" in trace.name
    raw = trace.read_bytes()
    events = json.loads(gzip.decompress(raw) if trace.suffix == ".gz" else raw)["traceEvents"]
    steps = sorted(
        (event for event in events if str(event.get("name", "")).startswith("ProfilerStep#")), key=lambda e: e["ts"]
    )
    assert [event["name"] for event in steps] == ["ProfilerStep#5", "ProfilerStep#6"]
    for step in steps:
        inside = [e for e in events if step["ts"] <= e.get("ts", 0) < step["ts"] + step["dur"]]
        assert sum(e.get("name") == "aten::addmm" for e in inside) > 20
