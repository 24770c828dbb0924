"""Tiny checkpoints as others publish them, and models that begin as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from mbsd.batch import Batch
from mbsd.config.data import DataConfig
from mbsd.config.model import ModelConfig
from mbsd.config.run import BaseConfig, RunConfig
from mbsd.data.views import TextTokens, pack
from mbsd.model.load import start_model
from tests.baselines.samples import CLS
from tests.model.reference import randomise

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip
WORDS: dict[str, Any] = {"vocab_size": 40, "max_position_embeddings": 24}
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


def shard(folder: Path) -> None:
    """The same weights in two files of PyTorch's own format and an index."""
    file = folder / "model.safetensors"
    weights, where = load_file(file), {}
    file.unlink()
    for number in (1, 2):
        part = dict(list(weights.items())[number - 1 :: 2])
        name = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save(part, folder / name)
        where |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
