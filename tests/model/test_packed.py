"""One packed forward equals each view of each sample alone, and equals plain padded BERT."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BertConfig, BertModel

from mbsd.batch import VIEW_NAMES
from mbsd.model.attention import AttentionPlan, packed_attention
from mbsd.model.mbsd import MbsdConfig, MbsdModel
from tests.model.reference import (
    COMBINATIONS,
    MIXED,
    Sample,
    Weights,
    below,
    deviation,
    embed_image,
    features_of,
    gradient_deviations,
    gradients_of,
    hand_batch,
    leaves,
    random_model,
    random_samples,
    shown,
    text_of,
    tiny_config,
)
from tests.model.varlen_on_cpu import varlen_on_cpu

HIDDEN, GRADIENT = 1e-5, 1e-4
TITLES_ONLY = ((None, 7, True), (None, 2, True), (None, None, True), (None, 4, False))
SIDES = {"four convolutions": {}, "three": {"patchify_strides": (4, 2, 2), "patchify_channels": (6, 8)}}


def score(hidden: list[Tensor], h: Tensor) -> Tensor:
    """A scalar that weighs every value of every token and representation differently."""
    total = h.new_zeros(())
    for k, x in enumerate([*hidden, h.reshape(-1, h.shape[-1])]):
        generator = torch.Generator().manual_seed(k)
        total = total + (x * torch.randn(x.shape, generator=generator)).sum()
    return total


def packed(model: MbsdModel, samples: list[Sample], names: tuple[str, ...]) -> tuple[list[Tensor], Tensor]:
    """(hidden states [L, D] of each sequence, h [V, B, D]) of one packed forward."""
    batch = hand_batch(samples, names, model.config)
    encoded = model.encode(batch)
    return list(encoded.hidden_TD.split(batch.views.lengths)), encoded.h_VBD


def alone(model: MbsdModel, samples: list[Sample], names: tuple[str, ...]) -> tuple[list[Tensor], Tensor]:
    """The same from a forward of its own for each view of each sample."""
    encoded = [model.encode(hand_batch([sample], (name,), model.config)) for name in names for sample in samples]
    h = torch.stack([one.h_VBD[0, 0] for one in encoded]).view(len(names), len(samples), -1)
    return [one.hidden_TD for one in encoded], h


def plain_bert(model: MbsdModel) -> BertModel:
    """Transformers' BertModel with the model's BERT weights and eager attention."""
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = BertConfig(
        **{name: getattr(model.config, name) for name in sizes},
        max_position_embeddings=model.config.max_position_embeddings,
        layer_norm_eps=model.config.layer_norm_eps,
        attn_implementation="eager",
    )
    bert = BertModel(config).eval()
    for part in ("embeddings", "encoder", "pooler"):
        getattr(bert, part).load_state_dict(getattr(model, part).state_dict())
    return bert


def padded(
    bert: BertModel, image_side: Weights, config: MbsdConfig, samples: list[Sample], names: tuple[str, ...]
) -> tuple[list[Tensor], Tensor]:
    """All sequences as rows of one padded tensor through plain BERT, an additive mask over the padding."""
    features = iter(features_of(image_side, config, samples))
    placed = [embed_image(image_side, next(features)) if s.image is not None else None for s in samples]
    longest = max(len(text_of(sample)[0]) for sample in samples)
    ids = torch.tensor([text_of(s)[0] + [0] * (longest - len(text_of(s)[0])) for s in samples])
    types = torch.tensor([text_of(s)[1] + [0] * (longest - len(text_of(s)[1])) for s in samples])
    text_BLD = bert.embeddings(input_ids=ids, token_type_ids=types) + image_side["modality_2D"][0]
    sequences = []
    for name in names:
        for b, sample in enumerate(samples):
            text, has_image = shown(sample, name)
            sequences.append(torch.cat([text_BLD[b, :text], placed[b]]) if has_image else text_BLD[b, :text])
    lengths = [len(sequence) for sequence in sequences]
    filled = torch.full((len(lengths), max(lengths), config.hidden_size), 3.0)  # padding that would be noticed
    rows = torch.stack([torch.cat([x, filled[s, len(x) :]]) for s, x in enumerate(sequences)])
    mask = torch.zeros(len(lengths), 1, max(lengths), max(lengths))
    for s, length in enumerate(lengths):
        mask[s, :, :, length:] = torch.finfo(torch.float32).min
    hidden = bert.encoder(rows, attention_mask=mask).last_hidden_state
    h = bert.pooler(hidden) if config.representation == "pooled" else hidden[:, 0]
    return [hidden[s, :length] for s, length in enumerate(lengths)], h.view(len(names), len(samples), -1)


def by_plan(
    model: MbsdModel, samples: list[Sample], names: tuple[str, ...], plan: AttentionPlan
) -> tuple[list[Tensor], Tensor]:
    """The packed forward under a given attention plan."""
    batch = hand_batch(samples, names, model.config)
    pixels = model.encode(batch).pixels
    tokens_TD = torch.cat([model.embed_text(batch), model.embed_images(pixels, None)])[batch.views.source_T]
    hidden_TD = model.encoder(tokens_TD[None], plan=plan).last_hidden_state[0]
    h = hidden_TD[batch.views.cu_seqlens[:-1].long()]
    h = model.pooler(h[:, None]) if model.config.representation == "pooled" else h
    return list(hidden_TD.split(batch.views.lengths)), h.view(len(names), len(samples), -1)


def assert_same(
    found: tuple[list[Tensor], Tensor], found_weights: Weights, expected: tuple[list[Tensor], Tensor], other: Weights
) -> None:
    """Hidden states, representations, and the gradient of every parameter."""
    assert len(found[0]) == len(expected[0])
    for x, y in zip([*found[0], found[1]], [*expected[0], expected[1]], strict=True):
        assert x.shape == y.shape
        assert deviation(x, y) < HIDDEN
    gradients = gradient_deviations(
        gradients_of(score(*found), found_weights), gradients_of(score(*expected), other)
    )  # fmt: skip
    assert {name: d for name, d in gradients.items() if not d < GRADIENT} == {}


@pytest.mark.parametrize("names", COMBINATIONS, ids="-".join)
@pytest.mark.parametrize("image_cls", [False, True])
@pytest.mark.parametrize("side", SIDES)
def test_packed_equals_alone_and_padded_bert(names: tuple[str, ...], image_cls: bool, side: str) -> None:
    config = tiny_config(image_cls=image_cls, **SIDES[side])
    model, samples = random_model(config, seed=1), random_samples(MIXED, seed=2)
    weights = dict(model.named_parameters())
    found = packed(model, samples, names)
    assert found[1].shape == (len(names), len(samples), config.hidden_size)
    assert_same(found, weights, alone(model, samples, names), weights)

    bert, image_side = plain_bert(model), leaves(model, torch.float32)
    bert_weights = dict(bert.named_parameters())
    plain = {name: bert_weights.get(name, image_side[name]) for name in weights}
    assert set(bert_weights) < set(weights)
    assert_same(packed(model, samples, names), weights, padded(bert, image_side, config, samples, names), plain)


@pytest.mark.parametrize("names", COMBINATIONS, ids="-".join)
@pytest.mark.parametrize("representation", ["pooled", "cls"])
@pytest.mark.parametrize("way", ["one by one", "flash", "efficient", "checkpointed"])
def test_h_alone_is_that_of_all_tokens(names: tuple[str, ...], representation: str, way: str) -> None:
    """And every gradient, of the last layer's parts too, though it answers for the first tokens alone."""
    config = tiny_config(representation=representation, num_hidden_layers=3)
    model, samples = random_model(config, seed=1).train(), random_samples(MIXED, seed=2)
    weights = dict(model.named_parameters())
    batch = hand_batch(samples, names, config)
    expected = model.encode(batch).h_VBD
    expected_gradients = gradients_of(score([], expected), weights)
    assert sum(bool(gradient.any()) for name, gradient in expected_gradients.items() if "layer.2." in name) == 16
    if way == "checkpointed":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with varlen_on_cpu(way) if way in ("flash", "efficient") else nullcontext():
        found = model.represent(batch)
        score([], found).backward()
    assert deviation(found, expected) < HIDDEN
    gradients = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in weights.items()}
    assert max(gradient_deviations(gradients, expected_gradients).values()) < GRADIENT
    layer = model.encoder.layer[2]
    rows = []
    hook = layer.intermediate.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    model.represent(batch)
    hook.remove()
    assert rows == [len(names) * len(samples)], "one row a sequence goes through the last layer's FFN"


@pytest.mark.parametrize("names", COMBINATIONS, ids="-".join)
@pytest.mark.parametrize("image_cls", [False, True])
def test_attention_plans_agree(names: tuple[str, ...], image_cls: bool) -> None:
    model = random_model(tiny_config(image_cls=image_cls), seed=3)
    samples = random_samples(MIXED, seed=4)
    weights = dict(model.named_parameters())
    views = hand_batch(samples, names, model.config).views
    one_by_one, at_once = AttentionPlan.of(views), AttentionPlan.at_once(views, (7, 0))
    assert one_by_one.offsets_S is None and at_once.offsets_S is not None
    with varlen_on_cpu("efficient"):
        found = by_plan(model, samples, names, at_once)
        assert_same(found, weights, by_plan(model, samples, names, one_by_one), weights)
    assert_same(by_plan(model, samples, names, one_by_one), weights, packed(model, samples, names), weights)


def test_dropped_attention_is_nothing_or_more() -> None:
    """On a CPU, with values that show the weights themselves: each is 0 or its softmax / (1 - p)."""
    lengths, width, share = (7, 30, 2), 32, 0.25
    q, k = (torch.randn(1, 2, sum(lengths), width, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    v = torch.cat([torch.eye(length, width) for length in lengths])[None, None].expand(1, 2, -1, -1)
    out, _ = packed_attention(torch.nn.Identity(), q, k, v, None, plan=AttentionPlan(lengths), dropout=share)
    kept, start = [], 0
    for length in lengths:
        rows = slice(start, start + length)
        expected = (q[0, :, rows].double() @ k[0, :, rows].double().transpose(1, 2) / width**0.5).softmax(-1)
        found = out[0, rows].transpose(0, 1).double()
        assert (found[..., length:] == 0).all()
        stays = found[..., :length] != 0
        assert torch.allclose(found[..., :length], stays * expected / (1 - share), rtol=1e-5, atol=1e-7)
        kept.append(stays.flatten())
        start += length
    assert abs(torch.cat(kept).double().mean() - (1 - share)) < 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_gpu_attends_in_one_kernel_with_the_same_numbers(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """States and gradients are the CPU's. Without a kernel for jagged tensors torch would attend one by one."""
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip(f"{torch.cuda.get_device_name()} has no bf16")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model, samples = random_model(tiny_config(), seed=3), random_samples(MIXED, seed=4)
    expected = model.encode(hand_batch(samples, VIEW_NAMES, model.config)).h_VBD
    expected.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    model = model.to("cuda", dtype)
    batch = hand_batch(samples, VIEW_NAMES, model.config).to("cuda")
    assert AttentionPlan.of(batch.views).offsets_S is not None
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        h_VBD = model.represent(batch)
        h_VBD.float().square().sum().backward()
        whole = model.encode(batch).h_VBD
    found = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    states, bound = (1e-3, 1e-2) if dtype == torch.float32 else (0.1, 0.2)
    assert deviation(h_VBD.float().cpu(), expected) < states and deviation(whole.float().cpu(), expected) < states
    deviations = gradient_deviations(found, gradients)
    assert max(deviations.values()) < bound, deviations


@pytest.mark.parametrize("representation", ["pooled", "cls"])
def test_single_texts_as_in_stage_1(representation: str) -> None:
    """No query: [CLS] title [SEP] + patches, of one type; three layers of another width."""
    config = tiny_config(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=8, representation=representation, image_cls=True
    )  # fmt: skip
    model, samples = random_model(config, seed=5), random_samples(TITLES_ONLY, seed=6)
    weights = dict(model.named_parameters())
    assert_same(packed(model, samples, ("full",)), weights, alone(model, samples, ("full",)), weights)
    bert, image_side = plain_bert(model), leaves(model, torch.float32)
    plain = {name: dict(bert.named_parameters()).get(name, image_side[name]) for name in weights}
    expected = padded(bert, image_side, config, samples, ("full",))
    assert_same(packed(model, samples, ("full",)), weights, expected, plain)


def test_no_image_in_the_whole_batch() -> None:
    model = random_model(tiny_config(), seed=7)
    samples = random_samples([(3, 5, False), (2, None, False)], seed=8)
    names = ("full", "text", "image")
    weights = dict(model.named_parameters())
    found = packed(model, samples, names)
    assert_same(found, weights, alone(model, samples, names), weights)
    assert found[1][0].equal(found[1][1])  # without an image, full and text are the same sequence


def test_another_sample_changes_nothing() -> None:
    """A neighbour's text and image do not leak: the first sample's states keep their value beside any other."""
    model, samples = random_model(tiny_config(), seed=9), random_samples(MIXED, seed=10)
    names = ("full", "text", "image")
    other = random_samples([(5, 8, True)] * 4, seed=11)
    hidden, h = packed(model, samples, names)
    moved, moved_h = packed(model, [samples[0], *other], names)
    for v in range(3):
        assert deviation(moved[5 * v], hidden[5 * v]) < HIDDEN
        assert deviation(moved_h[v, 0], h[v, 0]) < HIDDEN
        assert deviation(moved_h[v, 1], h[v, 1]) > 1e-2


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model, samples = random_model(tiny_config(), seed=12).train(), random_samples(MIXED, seed=13)
    names = ("full", "text", "image")
    weights = dict(model.named_parameters())
    expected = gradients_of(score(*packed(model, samples, names)), weights)
    model.gradient_checkpointing_enable()
    score(*packed(model, samples, names)).backward()
    found = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in weights.items()}
    assert max(gradient_deviations(found, expected).values()) < 1e-6


def test_bert_weights_are_all_of_the_models_text_side() -> None:
    """What the model has beyond BERT is the image side and nothing else."""
    model = random_model(tiny_config(image_cls=True), seed=14)
    beyond = {name for name, _ in model.named_parameters()} - {name for name, _ in plain_bert(model).named_parameters()}
    assert {name for name in beyond if not name.startswith("patchify.")} == {
        "image_position_PD", "modality_2D", "mask_D", "image_cls_D"
    }  # fmt: skip
    assert below(dict(model.named_parameters()), "patchify.layers.").keys() >= {"0.weight", "9.bias"}


@pytest.mark.parametrize("dropout", [0.0, 1e-9], ids=["one kernel", "products"])
def test_half_precision_trains_attention_in_float32_on_a_cpu(dropout: float) -> None:
    """Output and gradients are those of float32 on the same values, rounded once."""
    generator = torch.Generator().manual_seed(51)
    plan = AttentionPlan((5, 3, 9))
    given = [torch.randn(1, 2, 17, 8, generator=generator).bfloat16() for _ in range(3)]
    weights = torch.randn(1, 17, 2, 8, generator=generator).bfloat16()
    answers = []
    for dtype in (torch.bfloat16, torch.float32):
        q, k, v = (tensor.to(dtype).requires_grad_() for tensor in given)
        out, _ = packed_attention(torch.nn.Module(), q, k, v, None, plan=plan, dropout=dropout)
        assert out.dtype == dtype
        gradients = torch.autograd.grad(out, (q, k, v), weights.to(dtype))
        answers.append([tensor.bfloat16() for tensor in (out, *gradients)])
    for half, full in zip(*answers, strict=True):
        assert torch.equal(half, full)
