"""Two towers are the baselines bert and vit beside each other, and nothing more; and they begin as checkpoints do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForPreTraining, ViTConfig, ViTModel

from mbsd.batch import Batch
from mbsd.config.data import DataConfig
from mbsd.config.model import ModelConfig
from mbsd.config.run import BaseConfig, RunConfig
from mbsd.data.shape_buckets import black_images, fill_up
from mbsd.errors import UserError
from mbsd.model.execution import checkpoint_layers
from mbsd.model.heads import MbsdForContrastive
from mbsd.model.load import load_model, start_model
from mbsd.model.patchify import normalise_pixels
from mbsd.model.two_tower import TwoTowerConfig
from tests.baselines.samples import MIXED, batch_of, samples_of, tiny
from tests.model.reference import randomise

WITHOUT_QUERY = ((0, 5, True), (0, 9, False), (0, 0, True), (0, 3, True), (0, 0, False))
ORDERS = (("text", "image"), ("image", "text"), ("text",), ("image",))


def two_towers(**changes: Any) -> Any:
    backbone = tiny("two_tower", **changes).backbone().eval()
    randomise(backbone, 0)
    return backbone


def alone(backbone: Any, view: str) -> Any:
    """The baseline of a view, with that tower's weights."""
    baseline = tiny({"text": "bert", "image": "vit"}[view]).backbone().eval()
    baseline.load_state_dict(getattr(backbone, view).state_dict())
    return baseline


@torch.no_grad()
@pytest.mark.parametrize("views", ORDERS, ids="+".join)
@pytest.mark.parametrize("layout", [MIXED, WITHOUT_QUERY], ids=["queries", "items"])
def test_each_view_is_its_baseline_run_by_itself(layout: Any, views: tuple[str, ...]) -> None:
    """Titles and pictures missing or not; bit for bit, the hidden states of each token and their means too."""
    backbone, samples = two_towers(), samples_of(layout, 1)
    batch = batch_of(samples, views, backbone.config)
    found = backbone.encode(batch)
    assert found.h_VBD.shape == (len(views), len(layout), 32)
    hidden, means = [], []
    for v, view in enumerate(views):
        other = batch_of(samples, (view,), backbone.config)
        expected = alone(backbone, view).encode(other)
        assert torch.equal(found.h_VBD[v], expected.h_VBD[0])
        hidden.append(expected.hidden_TD)
        means.append(expected.token_means(other)[0])
    assert torch.equal(found.hidden_TD, torch.cat(hidden))
    torch.testing.assert_close(found.token_means(batch), torch.stack(means), rtol=1e-6, atol=1e-6)
    pictures = batch.images if "image" in views else batch.images[:0]
    assert torch.equal(found.pixels, normalise_pixels(pictures, torch.float32))


@torch.no_grad()
def test_no_tower_runs_what_the_other_view_shows() -> None:
    """The rows that each encoder is given are the tokens of its view, and a title changes no picture's h."""
    backbone, samples = two_towers(), samples_of(WITHOUT_QUERY, 2)
    batch = batch_of(samples, ("text", "image"), backbone.config)
    rows = {}
    for view, layers in (("text", backbone.text.encoder), ("image", backbone.image.layers[0])):
        layers.register_forward_pre_hook(lambda _, args, view=view: rows.update({view: args[0].shape[1]}))
    h_VBD = backbone.encode(batch).h_VBD
    count = len(samples)
    assert rows == {"text": sum(batch.views.lengths[:count]), "image": sum(batch.views.lengths[count:])}
    others = [(text, pixels) for (text, _), (_, pixels) in zip(samples_of(WITHOUT_QUERY, 3), samples, strict=True)]
    retitled = backbone.encode(batch_of(others, ("text", "image"), backbone.config)).h_VBD
    assert torch.equal(retitled[1], h_VBD[1])
    assert not torch.allclose(retitled[0, 0], h_VBD[0, 0], atol=1e-4)


@torch.no_grad()
def test_filled_batches_say_the_same() -> None:
    backbone, samples = two_towers(), samples_of(MIXED, 4)
    batch = batch_of(samples, ("text", "image"), backbone.config)
    images, patches = len(batch.images), backbone.config.num_patches
    filled = fill_up(batch, 16, num_images=images, fill_images=3, patches_per_image=patches)
    filled = dataclasses.replace(filled, images=black_images(batch.images, images + 3))
    assert filled.views.num_fill == 1
    plain, found = backbone.encode(batch), backbone.encode(filled)
    torch.testing.assert_close(found.h_VBD, plain.h_VBD, rtol=1e-5, atol=1e-6)
    assert found.hidden_TD.shape[0] == filled.views.source_T.shape[0]
    torch.testing.assert_close(found.token_means(filled), plain.token_means(batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activation_checkpointing_changes_no_gradient(dropout: float) -> None:
    config = tiny("two_tower", hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    batch = batch_of(samples_of(MIXED, 5), ("text", "image"), config)
    gradients = []
    for lean in (False, True):
        torch.manual_seed(0)
        model = MbsdForContrastive(config)
        if lean:
            checkpoint_layers(model)
        torch.manual_seed(1)
        output = model.train()(batch)
        ((output.text_embeds @ output.image_embeds.T).square().sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None)
        assert gradient is None or torch.equal(gradient, gradients[1][name]), name


def test_a_head_is_saved_and_loaded(tmp_path: Path) -> None:
    """With other dropout, which reaches both towers; and what no loss reads is frozen again."""
    torch.manual_seed(0)
    model = MbsdForContrastive(tiny("two_tower", representation="cls", image_tower={"layer_norm_eps": 1e-6})).eval()
    batch = batch_of(samples_of(MIXED, 6), ("text", "image"), model.config)
    model.save_pretrained(tmp_path)
    loaded = load_model(MbsdForContrastive, tmp_path, 32, {"hidden_dropout_prob": 0.3}, with_head=True)
    assert loaded.mbsd.image.dropout.p == loaded.mbsd.text.embeddings.dropout.p == 0.3
    assert loaded.mbsd.image.layernorm.eps == 1e-6 and loaded.mbsd.text.embeddings.LayerNorm.eps == 1e-12
    again, before = loaded.eval()(batch), model(batch)
    assert torch.equal(again.text_embeds, before.text_embeds) and torch.equal(again.image_embeds, before.image_embeds)
    frozen = {name for name, p in loaded.named_parameters() if not p.requires_grad}
    assert frozen == {f"mbsd.{tower}.pooler.dense.{kind}" for tower in ("text", "image") for kind in ("weight", "bias")}
    assert loaded.mbsd.get_input_embeddings() is loaded.mbsd.text.embeddings.word_embeddings


def settings(tmp_path: Path, **changes: Any) -> BaseConfig:
    sizes: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "patchify_strides": (16,),
    }  # fmt: skip
    model = ModelConfig(architecture="two_tower", **(sizes | changes))
    config = BaseConfig(RunConfig(str(tmp_path), max_steps=1), DataConfig("nowhere", image_size=32), model)
    config.check()
    return config


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A BERT's folder and a ViT's."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(3)
    BertForPreTraining(BertConfig(vocab_size=40, **SIZES)).save_pretrained(folder / "bert")
    vit = ViTConfig(image_size=32, patch_size=16, layer_norm_eps=1e-6, **SIZES)
    ViTModel(vit).save_pretrained(folder / "vit")
    return folder / "bert", folder / "vit"


@torch.no_grad()
def test_it_starts_from_a_bert_and_a_vit(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    bert, vit = checkpoints
    config = settings(tmp_path, backbone=str(bert), image_weights=str(vit), dropout=0.2)
    model = start_model(MbsdForContrastive, config, 40)
    assert isinstance(model.config, TwoTowerConfig)
    towers, theirs = model.mbsd, (BertForPreTraining.from_pretrained(bert).bert, ViTModel.from_pretrained(vit))
    for ours, other in ((towers.text, theirs[0]), (towers.image.layers, theirs[1].layers)):
        expected = other.state_dict()
        assert expected and all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())
    assert towers.image.layernorm.eps == 1e-6 and towers.text.embeddings.LayerNorm.eps == 1e-12
    assert towers.image.dropout.p == 0.2
    model.save_pretrained(tmp_path / "saved")
    again = load_model(MbsdForContrastive, tmp_path / "saved", 32)
    assert again.mbsd.image.layernorm.eps == 1e-6
    # The image tower alone, beside a text tower that is drawn.
    model = start_model(MbsdForContrastive, settings(tmp_path, image_weights=str(vit)), 40)
    assert torch.equal(model.mbsd.image.cls_D, theirs[1].embeddings.cls_token[0, 0])


def test_what_does_not_fit_is_refused_by_name(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    bert, vit = map(str, checkpoints)
    for changes, said in (
        ({"backbone": vit}, f"model.backbone={vit}: .*BERT"),
        ({"image_weights": bert}, f"model.image_weights={bert}: .*ViT"),
        ({"image_weights": vit, "hidden_size": 64}, "a ViT with hidden_size=32, but the text tower has 64"),
        ({"image_weights": vit, "num_hidden_layers": 3}, "a ViT with num_hidden_layers=2, but the text tower has 3"),
        ({"image_weights": vit, "patchify_strides": (8,)}, f"is 8, but model.image_weights={vit} was trained with 16"),
        ({"crop_size": 8}, "model.crop_size=8: model.architecture=two_tower does not read it"),
        ({"compile": True}, "model.compile=True: model.architecture=two_tower does not read it"),
    ):
        with pytest.raises(UserError, match=said):
            start_model(MbsdForContrastive, settings(tmp_path, **changes), 40)
    with pytest.raises(UserError, match="the view full is none of a two_tower, which reads text, image alone"):
        tiny("two_tower").require_views(("full",), "views")


def test_a_view_alone_asks_nothing_of_the_device() -> None:
    """Its parts are slices by host integers: they can be taken on the meta device, which has no values to ask for."""
    config = tiny("two_tower")
    batch: Batch = batch_of(samples_of(MIXED, 7), ("text", "image"), config).to("meta")
    with torch.device("meta"):
        backbone = config.backbone().eval()
    assert backbone.encode(batch).h_VBD.shape == (2, len(MIXED), 32)
