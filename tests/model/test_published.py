"""Checkpoints as others publish them give what transformers' own models give, and what was taken of them is named."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    RobertaConfig,
    RobertaForMaskedLM,
    ViltConfig,
    ViltForMaskedLM,
    ViTConfig,
    ViTForImageClassification,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from mbsd.batch import Batch
from mbsd.config.data import DataConfig
from mbsd.config.model import ModelConfig
from mbsd.config.run import BaseConfig, RunConfig
from mbsd.data.views import TextTokens, pack
from mbsd.errors import UserError
from mbsd.model.baselines.resnet import CropEncoder, FirstStages, load_first_stages, load_resnet
from mbsd.model.foreign import words_of as words_of_backbone
from mbsd.model.heads import MbsdForClassification, MbsdForContrastive, MbsdForMaskedModelling
from mbsd.model.load import load_model, start_model
from mbsd.model.taken_over import Sources, covered
from tests.baselines.samples import CLS, batch_of, samples_of
from tests.model.reference import randomise

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip
WORDS: dict[str, Any] = {"vocab_size": 40, "max_position_embeddings": 24}
TITLES = ((3, 5, True), (1, 0, True), (6, 9, True))
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


VITS = ("vit", "vilt", "two_tower")


def start(model_class: Any, image_size: int = 32, head: dict[str, Any] | None = None, **model: Any) -> Any:
    """As a run would start it."""
    if model["architecture"] in VITS:
        model["patchify_strides"] = (16,)
    config = BaseConfig(
        RunConfig("run", max_steps=1),
        DataConfig("nowhere", image_size=image_size, max_text_tokens=20, max_query_tokens=10),
        ModelConfig(dropout=0.0, **model),
    )
    config.check()
    return start_model(model_class, config, 40, None, head or {}).eval()


def words_of(text: TextTokens) -> tuple[Tensor, Tensor]:
    ids, types = (torch.from_numpy(array)[None] for array in (text.input_ids, text.token_type_ids))
    return ids, types


def published(model: nn.Module, folder: Path) -> Any:
    """Saved with all weights, LayerNorms among them, drawn at random."""
    randomise(model, 7)
    saved: Any = model.eval()
    saved.save_pretrained(folder)
    return saved


def rewrite(folder: Path, old: str, new: str, *, without: str = "nothing") -> None:
    """The same weights by other names, in PyTorch's own format and no other."""
    file = folder / "model.safetensors"
    weights = {name.replace(old, new): value for name, value in load_file(file).items() if without not in name}
    file.unlink()
    torch.save(weights, folder / "pytorch_model.bin")


# How a BERT is published -> what is new beside a classifier, and what is left over.
BERTS: dict[str, tuple[Any, tuple[str, ...], tuple[str, ...]]] = {
    "with its heads": (BertForPreTraining, (), ("cls",)),
    "without a pooler, of old names": (BertForMaskedLM, ("pooler",), ("cls",)),
    "bare": (BertModel, (), ()),
    "in shards": (BertForPreTraining, (), ("cls",)),
    "in half precision": (BertModel, (), ()),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", BERTS)
def test_a_bert_is_transformers_bert(kind: str, tmp_path: Path) -> None:
    """hfl/chinese-roberta-wwm-ext is one, with the heads of pre-training; older ones have other names."""
    model_class, new, left_over = BERTS[kind]
    theirs = published(model_class(BertConfig(**SIZES, **WORDS, layer_norm_eps=1e-6)), tmp_path)
    if kind == "in half precision":
        theirs.half().save_pretrained(tmp_path)
        theirs.float()
    if kind == "in shards":
        (tmp_path / "model.safetensors").unlink()
        theirs.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 3
    if kind == "without a pooler, of old names":
        rewrite(tmp_path, "LayerNorm.weight", "LayerNorm.gamma")
    model = start(MbsdForClassification, architecture="bert", backbone=str(tmp_path))
    samples = samples_of(TITLES, 1)
    found = model.mbsd.encode(batch_of(samples, ("text",), model.config))
    bert = getattr(theirs, "bert", theirs)
    for b, (text, _) in enumerate(samples):
        ids, types = words_of(text)
        expected = bert(input_ids=ids, token_type_ids=types)
        hidden = found.hidden_TD[sum(len(t.input_ids) for t, _ in samples[:b]) :][: ids.shape[1]]
        torch.testing.assert_close(hidden, expected.last_hidden_state[0], **CLOSE)
        if not new:
            torch.testing.assert_close(found.h_VBD[0, b], expected.pooler_output[0], **CLOSE)
    taken = model.taken_over
    assert isinstance(taken, Sources) and taken.new == ("classifier", *new)
    (source,) = taken.each
    assert covered(source.left_over, source.left_over | source.used) == left_over
    assert f"({sum(p.numel() for n, p in bert.named_parameters()):,} weights)" in str(taken)


@torch.no_grad()
def test_what_is_taken_and_left_is_printed(tmp_path: Path) -> None:
    bert = published(BertForPreTraining(BertConfig(**SIZES, **WORDS)), tmp_path)
    model = start(MbsdForMaskedModelling, architecture="mbsd", backbone=str(tmp_path))
    count = sum(p.numel() for name, p in bert.named_parameters() if "seq_relationship" not in name)
    assert str(model.taken_over) == (
        f"took embeddings, encoder, pooler, word_bias, word_transform ({count:,} weights) of the BERT; left over in "
        "it: cls.seq_relationship; new: image_position_PD, mask_D, modality_2D, patch_decoder, patchify"
    )


@torch.no_grad()
@pytest.mark.parametrize("kind", ["RoBERTa", "XLM-R"])
def test_a_roberta_is_transformers_roberta(kind: str, tmp_path: Path) -> None:
    """Its positions begin at 2, behind the padding's 1; it has one token type, and our titles have the second."""
    sizes: dict[str, Any] = {**SIZES, "vocab_size": 40, "max_position_embeddings": 26, "pad_token_id": 1}
    sizes |= {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
    if kind == "RoBERTa":
        theirs = published(RobertaForMaskedLM(RobertaConfig(**sizes)), tmp_path)
    else:
        theirs = published(XLMRobertaModel(XLMRobertaConfig(**sizes)), tmp_path)
    samples = samples_of(TITLES, 2)
    model = start(MbsdForMaskedModelling, architecture="mbsd", backbone=str(tmp_path))
    assert (model.config.max_position_embeddings, model.config.type_vocab_size) == (24, 2)
    model.mbsd.modality_2D.zero_()
    found = model.mbsd.encode(batch_of(samples, ("text",), model.config))
    start_row = 0
    for b, (text, _) in enumerate(samples):
        ids, _ = words_of(text)
        hidden = found.hidden_TD[start_row : start_row + ids.shape[1]]
        start_row += ids.shape[1]
        expected = getattr(theirs, "roberta", theirs)(input_ids=ids)
        torch.testing.assert_close(hidden, expected.last_hidden_state[0], **CLOSE)
        if kind == "RoBERTa":
            rows = model.word_transform(hidden)
            logits = rows @ model.mbsd.get_input_embeddings().weight.T + model.word_bias
            torch.testing.assert_close(logits, theirs(input_ids=ids).logits[0], **CLOSE)
        else:
            torch.testing.assert_close(found.h_VBD[0, b], expected.pooler_output[0], **CLOSE)
    image = ("image_position_PD", "mask_D", "modality_2D", "patch_decoder", "patchify")
    words = ("word_bias", "word_transform") if kind == "XLM-R" else ()
    pooler = ("pooler",) if kind == "RoBERTa" else ()
    assert model.taken_over.new == (*image, *pooler, *words)
    assert "left over" not in str(model.taken_over) and "of the RoBERTa" in str(model.taken_over)


def picture_alone(pixels: Tensor, config: Any) -> Batch:
    """[CLS] and the patches, as an image model has them."""
    text = TextTokens(np.array([CLS]), np.zeros(1, dtype=np.int64), 1)
    ids_N, positions_N, types_N, views = pack([text], [True], ("image",), config.num_patches)
    return Batch(ids_N, positions_N, types_N, pixels[None], views, items_B=torch.arange(1))


def processed(folder: Path, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    wide = pixels[None].float() / 255
    return (wide - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


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


def a_clip(kind: str, folder: Path) -> Any:
    """A CLIP's image tower, saved as it is published."""
    vision: dict[str, Any] = {**SIZES, "image_size": 32, "patch_size": 16}
    if kind == "CLIP's image tower":
        return published(CLIPVisionModel(CLIPVisionConfig(**vision)), folder)
    if kind == "CLIP":
        text = {**SIZES, **WORDS}
        return published(
            CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)), folder
        ).vision_model
    config = ChineseCLIPConfig(text_config={**SIZES, **WORDS}, vision_config=vision, projection_dim=8)
    return published(ChineseCLIPModel(config), folder).vision_model


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
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "part.safetensors")
    with pytest.raises(
        UserError, match=r"part.safetensors: no ResNet-50 .*missing: bn1.bias, bn1.running_mean, bn1.running"
    ):
        load_resnet(crops, str(tmp_path / "part.safetensors"))
    with pytest.raises(UserError, match=r"\d+ weights are no part of it: layer3.10.bn1.bias"):
        load_resnet(crops, str(tmp_path / "resnet101.pth"))


def test_what_cannot_be_taken_is_refused_by_name(tmp_path: Path) -> None:
    vit = published(ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, **SIZES)), tmp_path / "vit")
    a_clip("CLIP", tmp_path / "clip")
    bert = BertForPreTraining(BertConfig(**SIZES, **WORDS))
    randomise(bert, 7)
    bert.save_pretrained(tmp_path / "bert")
    start(MbsdForClassification, architecture="bert", backbone=str(tmp_path / "bert")).save_pretrained(
        tmp_path / "ours"
    )
    for name, changes in (
        ("relative", {"position_embedding_type": "relative_key"}),
        ("electra", {"model_type": "electra"}),
    ):
        bert.save_pretrained(tmp_path / name)
        file = tmp_path / name / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with torch.no_grad():
        bert.bert.encoder.layer[1].output.dense.bias[3] = float("nan")
    bert.save_pretrained(tmp_path / "broken")
    bert.save_pretrained(tmp_path / "part")
    rewrite(tmp_path / "part", "x", "x", without="encoder.layer.1.")
    vit.config.image_size = (32, 48)
    ViTForImageClassification(vit.config).save_pretrained(tmp_path / "wide")
    for architecture, name, said in (
        ("bert", "clip", "is a clip and not a BERT"),
        ("bert", "vit", "is a vit and not a BERT checkpoint; give a BERT's folder"),
        ("bert", "electra", "is a electra and not a BERT"),
        ("bert", "ours", "is a checkpoint that mbsd wrote; start from it with run.init_from"),
        ("bert", "relative", "position_embedding_type=relative_key"),
        ("bert", "broken", "1 weights hold values that are no numbers, bert.encoder.layer.1.output.dense.bias among"),
        ("bert", "part", r"16 of its weights are missing \(bert.encoder.layer.1.attention.output.LayerNorm.bias, "),
        ("vit", "bert", "is a bert and not a ViT checkpoint"),
        ("vilt", "bert", "is a bert and not a ViT checkpoint"),
        ("vit", "wide", "has 6 positions of patches, which are no square"),
    ):
        with pytest.raises(UserError, match=f"model.backbone={tmp_path / name}: .*{said}"):
            start(MbsdForClassification, architecture=architecture, backbone=str(tmp_path / name))


def broken(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(print, protocol=2))  # a name that would be called


def of_another_size(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"intermediate_size": 50}))


def of_other_pixels(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5], "image_std": [0.5, 0.5]}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (broken, "pytorch_model.bin holds no weights, or more than weights"),
        (of_another_size, r"6 of its weights do not have the sizes of its config.json \(layers.0.mlp.fc1.bias, "),
        (of_other_pixels, "its preprocessor_config.json cannot be read"),
    ],
)
def test_damaged_files_are_the_users_error(damage: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    published(ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, **SIZES)), tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=f"^model.backbone={tmp_path}: .*{said}") as caught:
        start(MbsdForClassification, architecture="vit", backbone=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_words_come_from_a_checkpoint_that_has_some(tmp_path: Path) -> None:
    """A ViT or a CLIP brings none: the tokenizer is built from the catalogue, or named by data.tokenizer."""
    published(ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, **SIZES)), tmp_path / "vit")
    published(ViltForMaskedLM(ViltConfig(**SIZES, **WORDS, image_size=32, patch_size=16)), tmp_path / "vilt")
    a_clip("CLIP", tmp_path / "clip")
    (tmp_path / "clip" / "tokenizer.json").write_text("{}")  # of CLIP's own words, of which no vector is taken
    for architecture, name, brings in (("vit", "vit", False), ("vilt", "vit", False), ("vit", "clip", False),
                                       ("vilt", "vilt", True), ("bert", "vilt", True)):  # fmt: skip
        settings = ModelConfig(architecture=architecture, backbone=str(tmp_path / name))  # type: ignore[arg-type]
        assert words_of_backbone(settings) == (settings.backbone if brings else None)
    (tmp_path / "vit" / "vocab.txt").write_text("added by hand")
    settings = ModelConfig(architecture="vit", backbone=str(tmp_path / "vit"))
    assert words_of_backbone(settings) == settings.backbone
    assert words_of_backbone(ModelConfig(architecture="vit")) is None
