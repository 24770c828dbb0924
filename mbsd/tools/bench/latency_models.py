"""The models that `mbsd bench latency` compares: of published size, with random weights.

All get token ids and uint8 pictures of 224 pixels, and none gets longer input than it reads: BERT has no picture, ViT
no title. The cost of a forward does not depend on the weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

from mbsd.batch import Batch
from mbsd.data.views import TextTokens, pack
from mbsd.errors import UserError
from mbsd.model.baselines.bert import BertBaseline, BertBaselineConfig
from mbsd.model.baselines.fashionbert import FashionBert, FashionBertConfig
from mbsd.model.baselines.kaleido import KaleidoBert, KaleidoConfig
from mbsd.model.baselines.m6 import M6, M6Config
from mbsd.model.baselines.ofa import Ofa, OfaConfig
from mbsd.model.baselines.vilt import ViltBaseline, ViltBaselineConfig
from mbsd.model.baselines.vit import VitBaseline, VitConfig
from mbsd.model.mbsd import MbsdConfig, MbsdModel
from mbsd.model.patchify import normalise_pixels
from mbsd.tools.export.padded import PaddedMbsd

TITLE, QUERY = 32, 8  # words
VOCABULARY = 20_000
PLAIN = "mbsd"
BARE = "bert-encoder"
DTYPES = {"mbsd-fp16": torch.float16, "mbsd-bf16": torch.bfloat16}
COMPILED = {"mbsd-compiled": torch.float32, "mbsd-compiled-bf16": torch.bfloat16}
ONNX = "mbsd-onnx"
BASELINES: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: BertBaseline(BertBaselineConfig()),
    "vit": lambda: VitBaseline(VitConfig()),
    "vilt": lambda: ViltBaseline(ViltBaselineConfig()),
    "fashionbert": lambda: FashionBert(FashionBertConfig()),
    "kaleido": lambda: KaleidoBert(KaleidoConfig()),
    "m6": lambda: M6(M6Config()),
    "ofa": lambda: Ofa(OfaConfig()),
}
NAMES = (PLAIN, *COMPILED, *DTYPES, ONNX, BARE, *BASELINES)

Step = Callable[[], object]


@dataclass(frozen=True)
class Contestant:
    """A model and the steps of it that are timed.

    Attributes:
        whole: batch size -> a step from token ids and uint8 pictures to representations h.
        image: batch size -> a step of the image side alone, from uint8 pictures to image tokens; None: it has none.
        parameters: number of the model's parameters.
    """

    whole: Callable[[int], Step]
    image: Callable[[int], Step] | None
    parameters: int


def runs_on(name: str, device: torch.device) -> bool:
    """Whether a model of NAMES is measured there: ONNX on CPUs, bf16 where it is not emulated."""
    if device.type == "cpu":
        return True
    bf16 = torch.bfloat16 in (DTYPES.get(name), COMPILED.get(name))
    return name != ONNX and (not bf16 or torch.cuda.is_bf16_supported(including_emulation=False))


def make_contestant(name: str, device: torch.device, threads: int, folder: Path) -> Contestant:
    """Build a model with random weights.

    Args:
        name: of NAMES.
        threads: of onnxruntime, which does not read torch's setting.
        folder: in which the ONNX graph is written.

    Raises:
        UserError: it cannot run on this machine.
    """
    if name != ONNX and not runs_on(name, device):
        raise UserError(f"--models {name}: {torch.cuda.get_device_name(device)} has no bf16; leave it out there")
    torch.manual_seed(0)
    if name == BARE:
        return _bare_encoder(device)
    model: Any = BASELINES[name]() if name in BASELINES else MbsdModel(MbsdConfig())
    if name in COMPILED:
        return _compiled(model.eval().to(device, COMPILED[name]))
    if name == ONNX:
        return _onnx(model.eval(), device, threads, folder)
    return _eager(name, model.eval().to(device, DTYPES.get(name, torch.float32)), device)


def tokens_of(name: str) -> int:
    """Number of tokens that the encoder of the model `name` reads for one sample."""
    model = PLAIN if name.startswith(PLAIN) or name == BARE else name
    return _batch(model, 1, torch.device("cpu")).num_tokens


def _batch(name: str, samples: int, device: torch.device) -> Batch:
    """A packed batch of `[CLS] query [SEP] title [SEP]` and a picture, reduced to what the model reads."""
    view = {"bert": "text", "vit": "image"}.get(name, "full")
    patches = {"bert": 0, "vilt": 50, "fashionbert": 16, "m6": 16, "kaleido": 55, "ofa": 196}.get(name, 49)
    rng = np.random.default_rng(0)
    types = np.repeat([0, 1], [QUERY + 2, TITLE + 1])
    ids = rng.integers(5, VOCABULARY, (samples, len(types)))
    texts = [TextTokens(row, types, QUERY + 2) for row in ids]
    input_ids_N, positions_N, types_N, views = pack(texts, [patches > 0] * samples, (view,), patches)
    pictures = rng.integers(0, 256, (samples if patches else 0, 3, 224, 224), dtype=np.uint8)
    items = torch.arange(samples)
    return Batch(input_ids_N, positions_N, types_N, torch.from_numpy(pictures), views, items_B=items).to(device)


def _eager(name: str, model: Any, device: torch.device) -> Contestant:
    def whole(samples: int) -> Step:
        batch = _batch(name, samples, device)
        return lambda: model.encode(batch).h_VBD

    def image(samples: int) -> Step:
        pictures = _batch(name, samples, device).images
        dtype = next(model.parameters()).dtype
        more = (None,) if isinstance(model, MbsdModel) else ()
        return lambda: model.embed_images(normalise_pixels(pictures, dtype), *more)

    return Contestant(whole, None if name == "bert" else image, _count(model))


def _bare_encoder(device: torch.device) -> Contestant:
    config = BertConfig()
    config._attn_implementation = "sdpa"
    encoder = BertEncoder(config).eval().to(device)

    def whole(samples: int) -> Step:
        tokens_BLD = torch.randn(samples, tokens_of(BARE), config.hidden_size, device=device)
        return lambda: encoder(tokens_BLD).last_hidden_state

    return Contestant(whole, None, _count(encoder))


class Served(nn.Module):
    """The padded model, normalisation of uint8 pictures included."""

    def __init__(self, model: MbsdModel) -> None:
        super().__init__()
        self.padded = PaddedMbsd(model)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor, types_BL: Tensor, images: Tensor, shown_B: Tensor) -> Tensor:
        """Representations h [B, D] of B samples; inputs as in `PaddedMbsd.forward`, but `images` uint8 [B, 3, h, w]."""
        pixels = normalise_pixels(images, self.padded.mbsd.modality_2D.dtype)
        h_BD: Tensor = self.padded(ids_BL, mask_BL, types_BL, pixels, shown_B)[0]
        return h_BD


class ServedImages(nn.Module):
    """The image side of `Served` alone."""

    def __init__(self, model: MbsdModel) -> None:
        super().__init__()
        self.mbsd = model

    def forward(self, images: Tensor) -> Tensor:
        """Image tokens [B * P, D] of uint8 pictures [B, 3, h, w], P patches each."""
        return self.mbsd.embed_images(normalise_pixels(images, self.mbsd.modality_2D.dtype), None)


def _padded(samples: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The inputs of `Served`: token ids, attention mask, token types, uint8 pictures, image mask."""
    batch = _batch(PLAIN, samples, device)
    ids_BL = batch.input_ids_N.view(samples, -1)
    shown_B = torch.ones(samples, dtype=torch.int64, device=device)
    return ids_BL, torch.ones_like(ids_BL), batch.token_type_ids_N.view(samples, -1), batch.images, shown_B


def _compiled(model: MbsdModel) -> Contestant:
    """The padded model compiled for each batch size, with weights frozen in the layout of the processor's kernels."""
    device = model.modality_2D.device
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UserError(
            "mbsd-compiled: torch.compile needs a C++ compiler here; install g++, or leave it out of --models"
        )

    def compiled(module: nn.Module) -> Any:
        return torch.compile(module, dynamic=False, options={"freezing": True})

    def whole(samples: int) -> Step:
        given, served = _padded(samples, device), compiled(Served(model))
        return lambda: served(*given)

    def image(samples: int) -> Step:
        pictures, served = _batch(PLAIN, samples, device).images, compiled(ServedImages(model))
        return lambda: served(pictures)

    return Contestant(whole, image, _count(model))


def _onnx(model: MbsdModel, device: torch.device, threads: int, folder: Path) -> Contestant:
    """The graph of `mbsd export --onnx` in onnxruntime; normalising pixels, outside the graph, is timed too."""
    if device.type != "cpu":
        raise UserError("mbsd-onnx: measured on CPUs alone here; leave it out of --models, or set DS_ACCELERATOR=cpu")
    from mbsd.tools.export.onnx_graph import INPUTS, require_packages, write_graph

    require_packages()
    import onnxruntime

    path = folder / "model.onnx"
    write_graph(model, path, model.config.max_position_embeddings)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    # Otherwise its threads keep spinning during the other models' turns.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    def whole(samples: int) -> Step:
        ids, mask, types, pictures, shown = _padded(samples, device)

        def step() -> object:
            pixels = normalise_pixels(pictures, torch.float32)
            values = (x.numpy() for x in (ids, mask, types, pixels, shown))
            return session.run(["h"], dict(zip(INPUTS, values, strict=True)))

        return step

    return Contestant(whole, None, _count(model))


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
