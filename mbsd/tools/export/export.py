"""A run's checkpoint -> a transformers folder for inference: float32 weights, tokenizer, image processor, ONNX."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import ViTImageProcessor
from transformers.image_utils import PILImageResampling

from mbsd.checkpoint import store
from mbsd.checkpoint.best import result
from mbsd.checkpoint.shards import Shards, file_name
from mbsd.checkpoint.store import MANIFEST
from mbsd.data.text import load_tokenizer
from mbsd.errors import UserError
from mbsd.io.files import facts_of, replace_text, replacing
from mbsd.io.settings_text import read_yaml
from mbsd.model.backbone import MbsdPreTrainedModel
from mbsd.model.config import BackboneConfig
from mbsd.model.heads import (
    MbsdForAlignment,
    MbsdForClassification,
    MbsdForContrastive,
    MbsdForMaskedModelling,
    MbsdForMatching,
)
from mbsd.model.mbsd import MbsdConfig
from mbsd.model.patchify import IMAGE_MEAN, IMAGE_STD

ARCHITECTURES: dict[str, type[MbsdPreTrainedModel]] = {
    kind.__name__: kind
    for kind in (MbsdForMaskedModelling, MbsdForContrastive, MbsdForMatching, MbsdForClassification, MbsdForAlignment)
}


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        architecture: class of the model.
        source: the checkpoint.
        weights: where the float32 weights were read, in words.
        differences: view -> largest absolute difference between ONNX graph and torch; empty without a graph.
    """

    architecture: str
    source: Path
    weights: str
    differences: dict[str, float]


def export(run: Path, out: Path, *, onnx: bool = False) -> Exported:
    """Write the checkpoint `run`, or the best (else the newest) of the run folder `run`, as a transformers folder.

    The folder holds config.json, model.safetensors (float32), the tokenizer (cut at data.max_text_tokens),
    preprocessor_config.json (AutoImageProcessor: size, mean, deviation; and the text lengths), with `onnx` model.onnx,
    and manifest.json: size and SHA-256 of each file, compared when the folder is loaded here. A failed export leaves
    nothing behind.

    Raises:
        UserError: no complete checkpoint in `run`, `out` exists, or the packages for `onnx` are not installed.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; name a new folder, an export replaces nothing")
    if onnx:
        from mbsd.tools.export.onnx_graph import require_packages, write_graph

        require_packages()
    checkpoint, settings = _checkpoint(run)
    model, weights = _model(checkpoint)
    config: Any = model.config
    with replacing(out) as writing:
        model.save_pretrained(writing)
        tokenizer = load_tokenizer(str(checkpoint / "model"))
        tokenizer.model_max_length = settings["max_text_tokens"]
        tokenizer.save_pretrained(writing)
        image_processor(config, **settings).save_pretrained(writing)
        ends = tokenizer.cls_token_id, tokenizer.sep_token_id
        differences = write_graph(model, writing / "model.onnx", settings["max_text_tokens"], ends) if onnx else {}
        files = {path.name: facts_of(path) for path in sorted(writing.iterdir())}
        replace_text(writing / MANIFEST, json.dumps({"files": files}, indent=1) + "\n")
    return Exported(type(model).__name__, checkpoint, weights, differences)


def image_processor(config: BackboneConfig, max_text_tokens: int, max_query_tokens: int) -> Any:
    """A `ViTImageProcessor` that prepares pictures as the training's decoder does: the whole picture, resized.

    The text lengths are stored in it too, for whoever tokenizes.
    """
    processor: Any = ViTImageProcessor
    return processor(
        size={"height": config.image_size, "width": config.image_size},
        resample=PILImageResampling.BILINEAR,
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
        do_convert_rgb=True,
        max_text_tokens=max_text_tokens,
        max_query_tokens=max_query_tokens,
    )


def _checkpoint(run: Path) -> tuple[Path, dict[str, int]]:
    """The checkpoint to export, complete and with valid checksums, and the text lengths of its run."""
    if store.is_step(run):
        broken = store.broken_files(run, checksums=True)
        if broken:
            raise UserError(f"{run}: not a complete checkpoint ({broken[0]}); name another one, or the run folder")
        checkpoint = run
    else:
        chosen = result(run / "checkpoints")
        if chosen is None:
            raise UserError(f"{run}: no complete checkpoint in it; name a run folder or one of its checkpoints")
        checkpoint = chosen
    settings = read_yaml(checkpoint / "config.yaml")["data"]
    return checkpoint, {name: int(settings[name]) for name in ("max_text_tokens", "max_query_tokens")}


def _model(checkpoint: Path) -> tuple[MbsdPreTrainedModel, str]:
    """The model in float32, and where its weights were read: the optimizer's masters if those in model/ are rounded."""
    folder = checkpoint / "model"
    found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if found.get("model_type") != MbsdConfig.model_type:
        raise UserError(
            f"{checkpoint}: holds a baseline ({found.get('model_type')}), and only MBSD is exported; evaluate and "
            "embed read a baseline's run folder itself"
        )
    names = found.get("architectures") or ["none"]
    kind = ARCHITECTURES.get(names[0])
    if kind is None:
        raise UserError(f"{folder}/config.json: architectures={names}; expected one of {', '.join(ARCHITECTURES)}")
    model: Any = kind.from_pretrained(folder, dtype="auto").eval()
    dtype = str(model.dtype).removeprefix("torch.")
    if model.dtype == torch.float32:
        return model, "float32"
    facts = json.loads((checkpoint / "run.json").read_text(encoding="utf-8"))
    ranks = list(range(facts["world_size"]))
    for rank in ranks:
        if not (checkpoint / f"{file_name(rank)}.safetensors").is_file():
            raise UserError(
                f"{checkpoint}: the float32 weights of rank {rank} are on another node's disk; copy its "
                f"{file_name(rank)}.* here"
            )
    masters = Shards(checkpoint, ranks).weights(facts["parameters"])
    rounded = {name: weight.clone() for name, weight in model.named_parameters()}
    model.float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            master = masters.get(f"model.{name}")  # the objective's name for it; frozen weights have no master
            if master is not None:
                assert master.to(rounded[name].dtype).equal(rounded[name]), f"{checkpoint}: {name} is not its master's"
                weight.copy_(master)
    return model, f"float32, the optimizer's master weights of a {dtype} run"
