"""Saving, loading, starting from a BERT, and parameter counts."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, BertForPreTraining, ViTConfig, ViTModel

from mbsd.errors import UserError
from mbsd.model.foreign import from_bert, from_vit
from mbsd.model.heads import MbsdForClassification, MbsdForMaskedModelling, MbsdForMatching
from mbsd.model.mbsd import MbsdConfig, MbsdModel
from mbsd.model.patchify import Patchify
from tests.model.reference import (
    MASK,
    MIXED,
    VOCABULARY,
    Corruption,
    deviation,
    hand_batch,
    random_samples,
    randomise,
    text_of,
    tiny_config,
)

VIEWS = ("full", "text", "image")
CORRUPTION = Corruption(words={(0, 1): MASK, (2, 3): MASK}, patches={(0, 1): "mask", (1, 2): "mask"})
MODELS = (MbsdModel, MbsdForMaskedModelling, MbsdForMatching, MbsdForClassification)


def outputs_of(model: nn.Module, config: MbsdConfig) -> list[torch.Tensor]:
    """Every tensor a model gives for a fixed batch that shows all it can read."""
    masked = isinstance(model, MbsdForMaskedModelling)
    samples = random_samples(MIXED, seed=50)
    batch = hand_batch(samples, ("full",) if masked else VIEWS, config, CORRUPTION if masked else None)
    with torch.no_grad():
        return list(vars(model(batch)).values())


def outputs_in_own_memory(loaded: MbsdModel) -> list[torch.Tensor]:
    """The outputs of a loaded model's copy, after those of the loaded model itself were found as good as equal.

    A loaded weight lies in the mapped file, at any address; there a product of one row rounds its last bit differently.
    """
    outputs = outputs_of(copy.deepcopy(loaded), loaded.config)
    assert all(deviation(x, y) < 1e-6 for x, y in zip(outputs_of(loaded, loaded.config), outputs, strict=True))
    return outputs


def assert_bitwise(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected) >= 2
    assert all(x.dtype == y.dtype and x.equal(y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("classes", [1, 7])
def test_a_saved_model_loads_bitwise(kind: Callable[..., MbsdModel], classes: int, tmp_path: Path) -> None:
    config = tiny_config(image_cls=True, match_head="per_view", representation="pooled", num_labels_out=classes)
    model = kind(config).eval()
    randomise(model, seed=51)
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path).eval()
    weights = loaded.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(weight.equal(weights[name]) for name, weight in model.state_dict().items())
    assert_bitwise(outputs_in_own_memory(loaded), outputs_of(model, config))


def test_every_setting_of_the_configuration_is_kept(tmp_path: Path) -> None:
    changes = {
        "image_size": 48, "patchify_strides": (4, 2, 2), "patchify_channels": (6, 8), "image_cls": True,
        "representation": "cls", "match_head": "per_view", "num_labels_out": 543, "layer_norm_eps": 1e-7,
    }  # fmt: skip
    tiny_config(**changes).save_pretrained(tmp_path)
    loaded = MbsdConfig.from_pretrained(tmp_path)
    for name, value in changes.items():
        found = getattr(loaded, name)
        assert (tuple(found) if isinstance(value, tuple) else found) == value
    assert loaded.patch_side == 16 and loaded.num_patches == 9


@pytest.mark.parametrize("kind", MODELS)
def test_auto_classes_know_it(kind: Callable[..., MbsdModel], tmp_path: Path) -> None:
    """AutoModel gives the backbone of whichever head was saved."""
    model = kind(tiny_config()).eval()
    randomise(model, seed=52)
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is MbsdConfig
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is MbsdModel
    backbone = model if isinstance(model, MbsdModel) else model.mbsd
    assert_bitwise(outputs_in_own_memory(loaded), outputs_of(backbone, model.config))


def test_stage_2_starts_from_a_stage_1_checkpoint(tmp_path: Path) -> None:
    first = MbsdForMaskedModelling(tiny_config())
    randomise(first, seed=53)
    first.save_pretrained(tmp_path)
    second = MbsdForMatching.from_pretrained(tmp_path)
    expected = first.mbsd.state_dict()
    assert all(weight.equal(expected[name]) for name, weight in second.mbsd.state_dict().items())
    assert second.match.weight.isfinite().all() and second.match.weight.std() < 0.1


@pytest.fixture(scope="module")
def bert() -> BertForPreTraining:
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=20, layer_norm_eps=1e-11, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForPreTraining(config).eval()
    randomise(model, seed=54)
    return model


def started_from_bert(folder: Path) -> MbsdForMaskedModelling:
    return from_bert(MbsdForMaskedModelling, tiny_config(image_cls=True), str(folder)).eval()


def assert_is_the_bert(model: MbsdForMaskedModelling, bert: BertForPreTraining) -> None:
    found, expected = model.mbsd.state_dict(), bert.bert.state_dict()
    assert set(expected) < set(found)
    assert all(found[name].equal(weight) for name, weight in expected.items())
    head = bert.cls.predictions
    assert model.word_bias.equal(head.bias)
    assert all(model.word_transform.state_dict()[n].equal(w) for n, w in head.transform.state_dict().items())


def test_it_starts_from_a_bert(bert: BertForPreTraining, tmp_path: Path) -> None:
    """Sizes and weights are the checkpoint's, the image side's settings stay, and texts come out as from BERT."""
    bert.save_pretrained(tmp_path)
    model = started_from_bert(tmp_path)
    assert_is_the_bert(model, bert)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.layer_norm_eps) == (24, 3, 1e-11)
    assert config.image_cls and config.image_size == 64 and tuple(config.patchify_channels) == (6, 8, 12)

    with torch.no_grad():
        model.mbsd.modality_2D.zero_()
    samples = random_samples([(3, 5, False), (1, None, False), (4, 9, False)], seed=55)
    words = Corruption(words={(0, 1): MASK, (2, 7): MASK})
    with torch.no_grad():
        encoded = model.mbsd.encode(hand_batch(samples, ("full",), config))
        word_logits = model(hand_batch(samples, ("full",), config, words)).word_logits
        for b, hidden in enumerate(encoded.hidden_TD.split([len(text_of(sample)[0]) for sample in samples])):
            ids, types = (torch.tensor(row)[None] for row in text_of(samples[b]))
            plain = bert.bert(input_ids=ids, token_type_ids=types)
            assert deviation(hidden, plain.last_hidden_state[0]) < 1e-5
            assert deviation(encoded.h_VBD[0, b], plain.pooler_output[0]) < 1e-5
        for k, (b, position) in enumerate(words.words):
            ids, types = (torch.tensor(row)[None] for row in text_of(samples[b]))
            ids[0, position] = MASK
            plain = bert(input_ids=ids, token_type_ids=types).prediction_logits[0, position]
            assert deviation(word_logits[k], plain) < 1e-5


def test_the_names_of_old_checkpoints_are_read(bert: BertForPreTraining, tmp_path: Path) -> None:
    """bert-base-chinese as published calls LayerNorm's weight and bias gamma and beta."""
    bert.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): weight
        for name, weight in weights.items()
    }
    assert renamed.keys() != weights.keys()
    save_file(renamed, file, metadata={"format": "pt"})
    assert_is_the_bert(started_from_bert(tmp_path), bert)


def write_nothing(folder: Path) -> None:
    folder.rmdir()


def write_no_file(folder: Path) -> None:
    assert not list(folder.iterdir())


def write_a_configuration_alone(folder: Path) -> None:
    BertConfig(hidden_size=24, num_attention_heads=3).save_pretrained(folder)


def write_a_broken_configuration(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def write_broken_weights(folder: Path) -> None:
    config = BertConfig(
        vocab_size=30, hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=24
    )  # fmt: skip
    BertForPreTraining(config).save_pretrained(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def write_weights_of_other_sizes(folder: Path) -> None:
    config = BertConfig(
        vocab_size=30, hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=24
    )  # fmt: skip
    BertForPreTraining(config).save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "hidden_size": 48}))


def write_a_vision_model(folder: Path) -> None:
    config = ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=24, image_size=32)
    ViTModel(config).save_pretrained(folder)


@pytest.mark.parametrize(
    "write",
    [
        write_nothing, write_no_file, write_a_configuration_alone, write_a_broken_configuration, write_broken_weights,
        write_weights_of_other_sizes, write_a_vision_model,
    ],
)  # fmt: skip
def test_a_folder_without_a_bert_is_the_users_error(write: Callable[[Path], None], tmp_path: Path) -> None:
    """Never a traceback of the loader's, and never a model with random weights in place of the BERT's."""
    folder = tmp_path / "not a bert"
    folder.mkdir()
    write(folder)
    with pytest.raises(UserError) as caught:
        from_bert(MbsdForMaskedModelling, tiny_config(), str(folder))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_vit_that_lacks_a_block_is_the_users_error(tmp_path: Path) -> None:
    """transformers would fill the block with random numbers."""
    write_a_vision_model(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 2}))
    with pytest.raises(UserError, match="not a ViT checkpoint, 16 of its weights are missing") as caught:
        from_vit(MbsdForMaskedModelling, tiny_config(), str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("size", "strides", "channels"), [(65, (4, 2, 2, 2), (6, 8, 12)), (72, (16,), ())])
def test_an_image_size_the_patches_do_not_fill_is_the_users_error(
    size: int, strides: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    with pytest.raises(UserError) as caught:
        MbsdModel(tiny_config(image_size=size, patchify_strides=strides, patchify_channels=channels))
    assert f"image_size={size}" in str(caught.value) and "\n" not in str(caught.value)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def patchify_count() -> int:
    """Of the paper's patchify: kernels and biases of four convolutions, weights and biases of three norms."""
    convolutions = (3 * 4**2 * 64 + 64) + (64 * 2**2 * 192 + 192) + (192 * 2**2 * 384 + 384) + (384 * 2**2 * 768 + 768)
    return convolutions + 2 * (64 + 192 + 384)


def test_patchify_has_one_and_a_half_million_parameters() -> None:
    patchify = Patchify((4, 2, 2, 2), (64, 192, 384), 768)
    assert count(patchify) == patchify_count() == 1_529_472
    assert patchify(torch.zeros(2, 3, 224, 224)).shape == (2, 49, 768)
    linear = Patchify((32,), (), 768)
    assert count(linear) == 3 * 32**2 * 768 + 768
    assert linear(torch.zeros(2, 3, 224, 224)).shape == (2, 49, 768)


def test_the_default_model_is_bert_base_chinese_and_the_image_side() -> None:
    d, inner, words = 768, 3072, 21128
    embeddings = (words + 512 + 2) * d + 2 * d
    layer = 4 * (d * d + d) + (d * inner + inner) + (inner * d + d) + 2 * 2 * d
    bert = embeddings + 12 * layer + (d * d + d)
    image_side = patchify_count() + 49 * d + 2 * d + d
    with torch.device("meta"):
        model = MbsdModel(MbsdConfig())
        with_image_cls = MbsdModel(MbsdConfig(image_cls=True))
        masked = MbsdForMaskedModelling(MbsdConfig())
        matching = MbsdForMatching(MbsdConfig())
    assert bert == 102_267_648  # bert-base-chinese without its heads
    assert count(model) == bert + image_side == 103_837_056
    assert count(with_image_cls) == bert + image_side + 2 * d
    assert count(matching) == bert + image_side + d + 1
    word_head, patch_head = (d * d + d) + 2 * d + words, d * 3 * 32**2 + 3 * 32**2  # the word table is tied
    assert count(masked) == bert + image_side + word_head + patch_head


def test_initialisation() -> None:
    """Every parameter is finite and set on purpose: ones, zeros, or the configured spread."""
    for kind in MODELS:
        torch.manual_seed(0)
        model = kind(tiny_config(image_cls=True, initializer_range=0.05, position_range=0.005, hidden_size=64))
        for name, parameter in model.named_parameters():
            assert parameter.isfinite().all(), name
            if parameter.ndim == 1 and not name.endswith(("mask_D", "image_cls_D")):
                assert parameter.unique().tolist() in ([0.0], [1.0]), name
            elif name.endswith(("position_embeddings.weight", "token_type_embeddings.weight", "position_PD", "ity_2D")):
                assert 0.003 < parameter.std() < 0.007 and abs(parameter.mean()) < 0.003, name
            elif name in ("match.weight", "classifier.weight"):
                assert 0.013 < parameter.std() < 0.027, name
            elif not name.endswith("word_embeddings.weight"):  # its padding row is 0
                assert 0.03 < parameter.std() < 0.07 and abs(parameter.mean()) < 0.03, name


def test_an_answer_layer_is_drawn_as_wide_as_head_range() -> None:
    for kind, layer in ((MbsdForMatching, "match"), (MbsdForClassification, "classifier")):
        spread = []
        for head_range in (0.02, 0.2):
            torch.manual_seed(0)
            config = tiny_config(hidden_size=64, num_labels_out=40, match_head="per_view", head_range=head_range)
            spread.append(getattr(kind(config), layer).weight.std().item())
        assert spread[1] / spread[0] == pytest.approx(10, rel=1e-3)
