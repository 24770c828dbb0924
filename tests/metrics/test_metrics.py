"""Numbers a run reports: FLOPs against torch's own counter, binary metrics by hand, files that survive a restart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mbsd.metrics.binary import binary_metrics
from mbsd.metrics.throughput import PEAK_FLOPS, model_flops, peak_of, training_flops
from mbsd.metrics.trust_ratios import summarise
from mbsd.metrics.writer import MetricsWriter
from mbsd.model.mbsd import MbsdModel
from tests.model.reference import MIXED, hand_batch, random_samples, tiny_config

VIEWS = ("full", "text", "image")


@pytest.mark.parametrize("all_tokens", [True, False])
def test_flops_are_those_torch_counts(all_tokens: bool) -> None:
    config = tiny_config()
    model, batch = MbsdModel(config), hand_batch(random_samples(MIXED, 0), VIEWS, config)
    # torch counts attention on a CPU only where it is made of matrix products
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        if all_tokens:
            encoded = model.encode(batch)
            (encoded.hidden_TD.sum() + encoded.h_VBD.sum()).backward()
        else:
            model.represent(batch).sum().backward()
    images, pooled = batch.images.shape[0], 6 * 15 * config.hidden_size**2
    # the formula counts the first convolution's gradient with respect to the pixels, which nobody asks for
    unasked = 2 * 3 * 6 * 4 * 4 * 16 * 16 * images
    counted = model_flops(config, batch.views.lengths, images) if all_tokens else training_flops(config, batch)
    assert counted + pooled - unasked == counter.get_total_flops()


def test_binary_metrics_by_hand() -> None:
    metrics = binary_metrics(np.array([2.0, -1.0, 0.5, -3.0, 1.0]), np.array([1, 1, 0, 0, 1]))
    assert metrics == pytest.approx(
        {"accuracy": 3 / 5, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "roc_auc": 5 / 6}
    )
    assert "roc_auc" not in binary_metrics(np.array([1.0, 2.0]), np.array([1, 1]))


def test_trust_ratios_by_layer_group() -> None:
    ratios = {
        "model.mbsd.embeddings.word_embeddings.weight": 0.5,
        "model.mbsd.modality_2D": 0.25,
        "model.mbsd.encoder.layer.3.output.dense.weight": 4.0,
        "model.mbsd.encoder.layer.3.attention.self.key.weight": 1.0,
        "model.mbsd.encoder.layer.3.attention.self.query.weight": 2.0,
        "model.mbsd.encoder.layer.11.output.dense.weight": 8.0,
        "model.mbsd.patchify.layers.0.weight": 3.0,
        "model.match_head.weight": 0.0,
    }
    summary = summarise({name: torch.tensor(value) for name, value in ratios.items()})
    groups = ["all", "embeddings", "heads", "layer_03", "layer_11", "patchify"]
    assert list(summary) == [f"{group}/{kind}" for group in groups for kind in ("min", "median", "max")]
    assert [summary[f"layer_03/{kind}"] for kind in ("min", "median", "max")] == [1.0, 2.0, 4.0]
    assert [summary[f"embeddings/{kind}"] for kind in ("min", "median", "max")] == [0.25, 0.375, 0.5]
    assert [summary[f"all/{kind}"] for kind in ("min", "median", "max")] == [0.0, 1.5, 8.0]
    assert summarise({}) == {}


def test_what_an_earlier_start_logged_past_its_checkpoint_is_taken_back(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, start_step=0, total_steps=4, enabled=True) as writer:
        for step in (1, 2, 3):
            writer.log(step, {"loss": 10.0 * step, "tokens_per_s": 5.0})
    with (tmp_path / "metrics.jsonl").open("a") as torn:
        torn.write('{"step": 3, "lo')
    with MetricsWriter(tmp_path, start_step=2, total_steps=4, enabled=True) as writer:
        writer.log(3, {"loss": 33.0})
        writer.log(3, {"loss": 7.0}, prefix="validation")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 3]
    assert lines[2]["loss"] == 33.0 and lines[3]["validation/loss"] == 7.0
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("train/loss")] == [(1, 10.0), (2, 20.0), (3, 33.0)]
    assert board.Scalars("speed/tokens_per_s")[0].value == 5.0
    assert board.Scalars("validation/loss")[0].value == 7.0


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, start_step=0, total_steps=1, enabled=False) as writer:
        writer.log(1, {"loss": 1.0})
        writer.advance()
    assert list(tmp_path.iterdir()) == []


def test_flops_grow_with_real_tokens_only() -> None:
    config = tiny_config()
    short, long = [(2, 3, True)] * 3, [(2, 3, True)] * 2 + [(2, 15, True)]
    flops = [
        training_flops(config, hand_batch(random_samples(layout, 0), ("text",), config)) for layout in (short, long)
    ]
    tokens = [hand_batch(random_samples(layout, 0), ("text",), config).num_tokens for layout in (short, long)]
    assert tokens[1] == tokens[0] + 12
    per_layer, of_last = 4 * 32 * 32 + 2 * 32 * 48, 2 * 32 * 32  # of the last layer the keys and values
    squares = (2 + 2 + 15 + 1) ** 2 - (2 + 2 + 3 + 1) ** 2
    assert flops[1] - flops[0] == 6 * (per_layer + of_last) * 12 + 12 * 32 * (squares + 12)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("Tesla V100-SXM2-32GB", 125e12), ("Tesla V100-SXM3-32GB", 125e12), ("Tesla V100-PCIE-16GB", 112e12),
        ("Tesla V100S-PCIE-32GB", 130e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12), ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA GH200 480GB", None), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("NVIDIA H20", None),
        ("NVIDIA GeForce RTX 4090", None), ("", None),
    ],
)  # fmt: skip
def test_peaks_are_those_of_the_form(name: str, peak: float | None) -> None:
    """NVIDIA's data sheets: half of what they give with sparsity (H100: 1,979 SXM5, 1,513 PCIe, 1,671 NVL)."""
    assert peak_of(name) == peak
    assert peak is None or peak in {112e12, 130e12, 756e12, 835e12} | set(PEAK_FLOPS.values())
