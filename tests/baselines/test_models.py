"""The baselines are what they are called: held against transformers' and torchvision's own, and published sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from transformers import AutoModel, BertConfig, BertModel, ViltConfig, ViltModel

from mbsd.errors import UserError
from mbsd.metrics.throughput import model_flops
from mbsd.model.baselines.bert import BertBaselineConfig
from mbsd.model.baselines.fashionbert import FashionBertConfig
from mbsd.model.baselines.kaleido import KaleidoConfig
from mbsd.model.baselines.m6 import M6Config
from mbsd.model.baselines.ofa import OfaConfig
from mbsd.model.baselines.resnet import CropEncoder, load_resnet, multiplications
from mbsd.model.baselines.vilt import ViltBaselineConfig
from mbsd.model.baselines.vit import VitConfig
from mbsd.model.heads import MbsdForClassification
from mbsd.model.patchify import normalise_pixels
from tests.baselines.samples import CONFIGS, MIXED, batch_of, samples_of, tiny
from tests.model.reference import randomise


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_published_sizes() -> None:
    with torch.device("meta"):
        bert = BertBaselineConfig(vocab_size=21128).backbone()
        assert count(bert) == count(BertModel(BertConfig(vocab_size=21128)))
        vit = VitConfig().backbone()
        words = count(vit.words) + count(vit.word_positions)
        published = torchvision.models.vit_b_32()
        assert count(vit) - words - count(vit.pooler) == count(published) - count(published.heads)
        vilt = ViltBaselineConfig(vocab_size=30522).backbone()
        assert count(vilt) == count(ViltModel(ViltConfig(image_size=224, max_position_embeddings=512)))
        resnet = torchvision.models.resnet50()
        for config in (FashionBertConfig(), KaleidoConfig()):
            assert count(config.backbone().crops) == count(resnet) - count(resnet.fc)
        m6 = M6Config().backbone()
        assert count(m6) - count(m6.crops) == pytest.approx(327e6, rel=0.01)
        assert count(OfaConfig().backbone()) == pytest.approx(182e6, rel=0.01)
    assert (FashionBertConfig().num_patches, KaleidoConfig().num_patches) == (16, 55)


def test_multiplications_are_those_that_are_made() -> None:
    assert multiplications(224) == pytest.approx(4.09e9, rel=0.01)  # as torchvision documents resnet50
    config = FashionBertConfig()
    assert model_flops(config, [], 2) == 6 * 2 * 16 * multiplications(224)


@torch.no_grad()
def test_bert_is_berts() -> None:
    config = tiny("bert")
    ours = config.backbone().eval()
    randomise(ours, 0)
    keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
            "max_position_embeddings")  # fmt: skip
    theirs = BertModel(BertConfig(**{key: getattr(config, key) for key in keys})).eval()
    theirs.load_state_dict(ours.state_dict())
    samples = samples_of(MIXED, 1)
    found = ours.encode(batch_of(samples, ("text",), config)).h_VBD[0]
    for b, (text, _) in enumerate(samples):
        ids, types = (torch.from_numpy(x)[None] for x in (text.input_ids, text.token_type_ids))
        expected = theirs(input_ids=ids, token_type_ids=types).pooler_output[0]
        torch.testing.assert_close(found[b], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_vilt_is_vilts() -> None:
    config = tiny("vilt")
    ours = config.backbone().eval()
    randomise(ours, 0)
    keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
            "max_position_embeddings", "image_size")  # fmt: skip
    theirs = ViltModel(ViltConfig(**{key: getattr(config, key) for key in keys}, patch_size=16)).eval()
    theirs.embeddings.text_embeddings.load_state_dict(ours.embeddings.state_dict())
    theirs.embeddings.cls_token.copy_(ours.cls_D[None, None])
    theirs.embeddings.position_embeddings.copy_(ours.image_position_PD[None])
    theirs.embeddings.token_type_embeddings.weight.copy_(ours.modality_2D)
    theirs.embeddings.patch_embeddings.projection.load_state_dict(ours.projection.state_dict())
    names = {"attention.attention.query": "attention.q_proj", "attention.attention.key": "attention.k_proj",
             "attention.attention.value": "attention.v_proj", "attention.output.dense": "attention.o_proj",
             "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2", "layernorm_before": "layernorm_before",
             "layernorm_after": "layernorm_after"}  # fmt: skip
    for layer, other in zip(ours.layers, theirs.encoder.layer, strict=True):
        for theirs_name, name in names.items():
            other.get_submodule(theirs_name).load_state_dict(layer.get_submodule(name).state_dict())
    theirs.layernorm.load_state_dict(ours.layernorm.state_dict())
    theirs.pooler.load_state_dict(ours.pooler.state_dict())
    samples = samples_of(((3, 5, True), (2, 0, True)), 2)
    found = ours.encode(batch_of(samples, ("full",), config)).h_VBD[0]
    for b, (text, pixels) in enumerate(samples):
        ids, types = (torch.from_numpy(x)[None] for x in (text.input_ids, text.token_type_ids))
        assert pixels is not None
        expected = theirs(input_ids=ids, token_type_ids=types, attention_mask=torch.ones_like(ids),
                          pixel_values=normalise_pixels(pixels[None], torch.float32))  # fmt: skip
        torch.testing.assert_close(found[b], expected.pooler_output[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_crops_are_equal_parts_of_the_picture() -> None:
    crops = CropEncoder((1, 2, 4), 8)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = crops.cut(pixels, 4)
    for n in range(16):
        row, column = divmod(n, 4)
        torch.testing.assert_close(found[:, n], pixels[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8])
    assert crops.cut(pixels, 1).shape == (2, 1, 3, 8, 8)
    assert crops(pixels[:0]).shape == (0, 21, 2048)


@torch.no_grad()
def test_a_resnet_of_three_stages_is_the_first_three_of_four() -> None:
    torch.manual_seed(0)
    four, three = CropEncoder((2,), 16, (1, 1, 1, 1)), CropEncoder((2,), 16, (1, 1, 1))
    weights = four.state_dict()
    assert {name for name in weights if "layer4" in name} == weights.keys() - three.state_dict().keys()
    three.load_state_dict({name: value for name, value in weights.items() if "layer4" not in name})
    stages = torch.nn.Sequential(*list(four.resnet.children())[:7])  # conv1, bn1, relu, maxpool, three stages
    pixels = torch.randn(3, 3, 32, 32)
    expected = stages(three.cut(pixels, 2).flatten(0, 1)).mean((2, 3)).view(3, 4, 1024)
    torch.testing.assert_close(three(pixels), expected)
    assert three(pixels[:0]).shape == (0, 4, 1024)
    assert multiplications(16, (1, 1, 1)) < 0.6 * multiplications(16, (1, 1, 1, 1))


def test_statistics_stay_precise_where_weights_are_halved() -> None:
    """As DeepSpeed leaves a model in bf16 or fp16."""
    torch.manual_seed(0)
    crops, pixels = CropEncoder((1,), 32), torch.randn(2, 3, 32, 32)
    expected = crops(pixels)
    for parameter in crops.parameters():
        parameter.data = parameter.data.bfloat16()
    found = crops(pixels.bfloat16())
    assert found.dtype == torch.bfloat16 and (found.float() - expected).norm() < 0.05 * expected.norm()
    found.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in crops.parameters())


@torch.no_grad()
def test_resnet_is_torchvisions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50().eval()
    theirs.bn1.running_mean.uniform_(-0.1, 0.1)
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    ours = CropEncoder((1,), 32).train()  # statistics are held in training too
    load_resnet(ours, str(tmp_path / "resnet.pth"))
    theirs.fc = nn.Identity()
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(pixels)[:, 0], theirs(pixels), rtol=1e-4, atol=1e-5)
    for name, content in (("none.pth", None), ("text.pth", b"no weights"), ("other.safetensors", b"12345678")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="model.image_weights=.*no ResNet-50"):
            load_resnet(ours, str(tmp_path / name))


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_a_sample_says_the_same_whatever_stands_beside_it(name: str, tmp_path: Path) -> None:
    """With titles and pictures missing, in every view it reads; and after it was saved and loaded."""
    config = tiny(name)
    torch.manual_seed(0)
    model = config.backbone().eval()
    samples = samples_of(MIXED, 4)
    together = model.encode(batch_of(samples, config.known_views, config)).h_VBD
    assert together.isfinite().all()
    for b, sample in enumerate(samples):
        alone = model.encode(batch_of([sample], config.known_views, config)).h_VBD
        torch.testing.assert_close(together[:, b], alone[:, 0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[:, 0], together[:, 3], atol=1e-4)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    again = loaded.encode(batch_of(samples, config.known_views, config)).h_VBD
    torch.testing.assert_close(again, together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_reaches_every_trainable_parameter(name: str) -> None:
    config = tiny(name)
    torch.manual_seed(0)
    model = MbsdForClassification(config)
    batch = batch_of(samples_of(MIXED[:2], 5), config.known_views, config)
    model(batch).logits.sum().backward()
    without = [key for key, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not without
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
