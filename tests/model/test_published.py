"""Checkpoints as others publish them give what transformers' own models give, and what was taken of them is named."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    RobertaConfig,
    RobertaForMaskedLM,
    ViltConfig,
    ViltForMaskedLM,
    ViTConfig,
    ViTForImageClassification,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from mbsd.config.model import ModelConfig
from mbsd.errors import UserError
from mbsd.model.foreign import words_of as words_of_backbone
from mbsd.model.heads import MbsdForClassification, MbsdForMaskedModelling
from mbsd.model.taken_over import Sources, covered
from tests.baselines.samples import batch_of, samples_of
from tests.model.published import (
    CLOSE,
    SIZES,
    WORDS,
    a_clip,
    published,
    rewrite,
    shard,
    start,
    words_of,
)
from tests.model.reference import randomise

TITLES = ((3, 5, True), (1, 0, True), (6, 9, True))
BERTS: dict[str, tuple[Any, tuple[str, ...], tuple[str, ...]]] = {
    "with its heads": (BertForPreTraining, (), ("cls",)),
    "without a pooler, of old names": (BertForMaskedLM, ("pooler",), ("cls",)),
    "bare": (BertModel, (), ()),
    "in shards": (BertForPreTraining, (), ("cls",)),
    "in shards of PyTorch's own": (BertForPreTraining, (), ("cls",)),
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
    if kind == "in shards of PyTorch's own":
        shard(tmp_path)
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
