"""Image models as others publish them give what transformers' own models give, and what was taken of them is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForPreTraining,
    ChineseCLIPModel,
    ViltConfig,
    ViltForMaskedLM,
    ViTConfig,
    ViTForImageClassification,
)

from mbsd.errors import UserError
from mbsd.model.baselines.ofa import OfaConfig
from mbsd.model.baselines.resnet import CropEncoder, FirstStages, load_first_stages, load_resnet
from mbsd.model.families import FAMILIES
from mbsd.model.heads import MbsdForClassification, MbsdForContrastive
from mbsd.model.load import load_model
from mbsd.model.taken_over import covered
from tests.baselines.samples import batch_of, samples_of
from tests.model.published import (
    CLIP_MEAN,
    CLIP_STD,
    CLOSE,
    SIZES,
    WORDS,
    a_clip,
    normalised,
    picture_alone,
    processed,
    published,
    rewrite,
    start,
    words_of,
)


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("architecture", ["vit", "vilt"])
def test_a_vit_is_transformers_vit(architecture: str, size: int, tmp_path: Path) -> None:
    """Its pixels are normalised its own way, and its positions resized to our pictures as transformers resizes them."""
    theirs = published(ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, **SIZES)), tmp_path)
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.6, 0.2)
    processed(tmp_path, mean, std)
    model = start(MbsdForClassification, size, architecture=architecture, backbone=str(tmp_path))
    (_, pixels), *_ = samples_of(((1, 0, True),), 3, side=size)
    assert pixels is not None
    expected = theirs.vit(pixel_values=normalised(pixels, mean, std), interpolate_pos_encoding=True)
    if architecture == "vit":
        hidden = model.mbsd.encode(picture_alone(pixels, model.config)).hidden_TD
        torch.testing.assert_close(hidden, expected.last_hidden_state[0], **CLOSE)
    said = str(model.taken_over)
    words = {"vit": ("word_positions", "words"), "vilt": ("embeddings", "modality_2D")}[architecture]
    assert set(model.taken_over.new) == {"classifier", "pooler", *words}
    assert "of the ViT" in said and "left over in it: classifier" in said and "mean 0.5/0.4/0.3" in said
    assert ("positions of 2 x 2 patches resized to 3 x 3 (bicubic)" in said) == (size == 48)


CLIPS = ["CLIP", "CLIP's image tower", "Chinese CLIP"]


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("kind", CLIPS)
def test_a_clips_image_tower_is_transformers_clip(kind: str, size: int, tmp_path: Path) -> None:
    theirs = a_clip(kind, tmp_path / "clip")
    model = start(
        MbsdForClassification, size, architecture="vit", backbone=str(tmp_path / "clip"), representation="cls"
    )
    (_, pixels), *_ = samples_of(((1, 0, True),), 4, side=size)
    assert pixels is not None
    shown = normalised(pixels, CLIP_MEAN, CLIP_STD)  # without a preprocessor_config.json, CLIP's own
    expected = theirs(pixel_values=shown, interpolate_pos_encoding=True)
    batch = picture_alone(pixels, model.config)
    found = model.mbsd.encode(batch)
    torch.testing.assert_close(found.h_VBD[0], expected.pooler_output, **CLOSE)
    torch.testing.assert_close(found.hidden_TD, theirs.post_layernorm(expected.last_hidden_state[0]), **CLOSE)
    said = str(model.taken_over)
    assert set(model.taken_over.new) == {"classifier", "pooler", "word_positions", "words"} and "of the CLIP" in said
    left = "left over in it: logit_scale, text_model, text_projection, visual_projection"
    assert (left in said) == (kind != "CLIP's image tower") == ("left over" in said)
    model.save_pretrained(tmp_path / "saved")
    again = load_model(MbsdForClassification, tmp_path / "saved", size).eval()
    assert torch.equal(again.mbsd.encode(batch).h_VBD, found.h_VBD)


@torch.no_grad()
def test_two_towers_begin_as_a_bert_and_a_clip(tmp_path: Path) -> None:
    bert = published(BertForPreTraining(BertConfig(**SIZES, **WORDS)), tmp_path / "bert").bert
    clip = a_clip("CLIP", tmp_path / "clip")
    model = start(
        MbsdForContrastive, architecture="two_tower", backbone=str(tmp_path / "bert"), representation="cls",
        image_weights=str(tmp_path / "clip"),
    )  # fmt: skip
    ((text, pixels),) = samples_of(((0, 4, True),), 5)
    assert pixels is not None
    title = model.mbsd.encode(batch_of([(text, pixels)], ("text",), model.config)).h_VBD[0]
    ids, types = words_of(text)
    torch.testing.assert_close(title, bert(input_ids=ids, token_type_ids=types).last_hidden_state[:, 0], **CLOSE)
    picture = model.mbsd.encode(picture_alone(pixels, model.config)).h_VBD[0]
    shown = normalised(pixels, CLIP_MEAN, CLIP_STD)
    torch.testing.assert_close(picture, clip(pixel_values=shown).pooler_output, **CLOSE)
    said = str(model.taken_over)
    assert f"of the CLIP model.image_weights={tmp_path / 'clip'}" in said and "of the BERT model.backbone=" in said
    assert said.endswith(
        "new: image.pooler, image.word_positions, image.words, image_projection, logit_scale, text_projection"
    )


@torch.no_grad()
def test_two_towers_are_a_chinese_clip(tmp_path: Path) -> None:
    """With its projections, so that titles and pictures are in its space before a step is trained."""
    a_clip("Chinese CLIP", tmp_path)
    theirs = ChineseCLIPModel.from_pretrained(tmp_path).eval()
    towers: dict[str, Any] = {"architecture": "two_tower", "backbone": str(tmp_path), "image_weights": str(tmp_path)}
    model = start(MbsdForContrastive, head={"projection_dim": 8}, representation="cls", **towers)
    ((text, pixels),) = samples_of(((0, 4, True),), 5)
    assert pixels is not None
    title = model.project(model.mbsd.represent(batch_of([(text, pixels)], ("text",), model.config))[0], "text")
    picture = model.project(model.mbsd.represent(picture_alone(pixels, model.config))[0], "image")
    ids, types = words_of(text)
    expected = theirs(input_ids=ids, token_type_ids=types, pixel_values=normalised(pixels, CLIP_MEAN, CLIP_STD))
    torch.testing.assert_close(title, expected.text_embeds, **CLOSE)
    torch.testing.assert_close(picture, expected.image_embeds, **CLOSE)
    assert not {"image_projection", "text_projection"} & set(model.taken_over.new)
    model.save_pretrained(tmp_path / "saved")
    again = load_model(MbsdForContrastive, tmp_path / "saved", 32, with_head=True).eval()
    batch = picture_alone(pixels, model.config)
    assert torch.equal(again.mbsd.represent(batch), model.mbsd.represent(batch))
    for changes in ({"head": {"projection_dim": 8}}, {"representation": "cls"}):  # pooled; or 512 wide
        other = start(MbsdForContrastive, **towers, **changes)
        assert {"image_projection", "text_projection"} <= set(other.taken_over.new)


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 48])
def test_a_vilt_is_transformers_vilt(size: int, tmp_path: Path) -> None:
    """Whole: words, modality, pooler, word head; its positions resized as transformers' resizes them."""
    vilt = ViltConfig(**SIZES, **WORDS, image_size=32, patch_size=16, modality_type_vocab_size=3, layer_norm_eps=1e-6)
    theirs = published(ViltForMaskedLM(vilt), tmp_path)
    processed(tmp_path, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    if size == 48:  # dandelin/vilt-b32-mlm is PyTorch's own file, and its word head's bias has another name
        rewrite(tmp_path, "mlm_score.decoder.bias", "mlm_score.bias")
    model = start(MbsdForClassification, size, architecture="vilt", backbone=str(tmp_path))
    samples = samples_of(((3, 5, True), (2, 0, True)), 6, side=size)
    found = model.mbsd.encode(batch_of(samples, ("full",), model.config)).h_VBD[0]
    for b, (text, pixels) in enumerate(samples):
        ids, types = words_of(text)
        assert pixels is not None
        shown = normalised(pixels, (0.5,) * 3, (0.5,) * 3)
        masks = {"attention_mask": torch.ones_like(ids), "pixel_mask": torch.ones(1, size, size)}
        expected = theirs.vilt(input_ids=ids, token_type_ids=types, pixel_values=shown, **masks)
        torch.testing.assert_close(found[b], expected.pooler_output[0], rtol=1e-4, atol=1e-5)
    assert model.taken_over.new == ("classifier",)
    assert "left over in it: mlm_score" in str(model.taken_over) and "of the ViLT" in str(model.taken_over)
    assert ("positions of 2 x 2 patches resized to 3 x 3 (bilinear)" in str(model.taken_over)) == (size == 48)


@torch.no_grad()
def test_resnets_are_taken_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for name, make in (("resnet50", torchvision.models.resnet50), ("resnet101", torchvision.models.resnet101)):
        weights = make().state_dict()
        weights["bn1.running_mean"].uniform_(-0.1, 0.1)
        torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}}, tmp_path / f"{name}.pth")
    crops = CropEncoder((1,), 32)
    taken = load_resnet(crops, str(tmp_path / "resnet50.pth"))
    assert covered(taken.left_over, taken.left_over | taken.used) == ("fc",)
    assert taken.taken == {name for name, _ in crops.named_parameters()}
    stages, theirs = FirstStages(), torchvision.models.resnet101().eval()
    theirs.load_state_dict(weights)
    left = load_first_stages(stages, str(tmp_path / "resnet101.pth"))
    assert covered(left.left_over, left.left_over | left.used) == ("fc", "layer4")
    pixels = torch.randn(1, 3, 32, 32)
    features: Any = nn.Sequential(*list(theirs.children())[:-3])(pixels)
    torch.testing.assert_close(stages(pixels), features.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = MbsdForClassification(OfaConfig(vocab_size=64, image_size=32, **sizes))
    FAMILIES["ofa"].load_images(model, str(tmp_path / "resnet101.pth"))
    assert torch.equal(model.mbsd.stages(pixels), stages(pixels)) and "ResNet-101" in str(model.taken_over)
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "part.safetensors")
    with pytest.raises(
        UserError, match=r"part.safetensors: no ResNet-50 .*missing: bn1.bias, bn1.running_mean, bn1.running"
    ):
        load_resnet(crops, str(tmp_path / "part.safetensors"))
    with pytest.raises(UserError, match=r"\d+ weights are no part of it: layer3.10.bn1.bias"):
        load_resnet(crops, str(tmp_path / "resnet101.pth"))
