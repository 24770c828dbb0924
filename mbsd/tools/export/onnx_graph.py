"""The ONNX graph of a model, compared with torch before it is published."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mbsd.batch import VIEW_NAMES, Batch
from mbsd.data.views import TextTokens, pack
from mbsd.errors import UserError
from mbsd.model.backbone import MbsdPreTrainedModel
from mbsd.model.embedder import Embedder
from mbsd.model.heads import MbsdForContrastive, MbsdForMatching
from mbsd.model.patchify import normalise_pixels
from mbsd.tools.export.padded import PaddedContrastive, PaddedMbsd

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-4
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values", "image_mask")


def require_packages() -> None:
    """Check that the packages of the extra `mbsd[onnx]` are installed.

    Raises:
        UserError: one is missing.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--onnx: {', '.join(missing)} is not installed; pip install 'mbsd[onnx]'")


def write_graph(
    model: MbsdPreTrainedModel, path: Path, max_text_tokens: int, ends: tuple[int, int] = (0, 0)
) -> dict[str, float]:
    """Write `PaddedMbsd` of the model as one graph for any number of samples and any text length.

    Of a model of the contrastive stage it is `PaddedContrastive`, whose texts and pictures need not be equally many.

    Args:
        ends: the tokens [CLS] and [SEP], which the latter holds.

    Returns:
        View -> largest absolute difference between onnxruntime on padded input and torch on packed input, over
        representations and logits (or projected vectors) of samples of several lengths, with and without query, title
        and image.

    Raises:
        ArithmeticError: a difference is above 1e-4.
    """
    if isinstance(model, MbsdForContrastive):
        differences = _write_contrastive(model, path, max_text_tokens, ends)
    else:
        differences = _write_one_view(model, path, max_text_tokens)
    if not max(differences.values()) <= TOLERANCE:
        raise ArithmeticError(f"{path}: differs from torch by {differences}; expected at most {TOLERANCE}")
    return differences


def _write_one_view(model: MbsdPreTrainedModel, path: Path, max_text_tokens: int) -> dict[str, float]:
    samples = _samples(model.config, max_text_tokens)
    padded = PaddedMbsd(model).eval()
    names = ["h"] if padded.head is None else ["h", "logits"]
    batch = torch.export.Dim("batch")
    _write(padded, path, _padded(samples, "full"), names, (batch, batch))
    return _differences(model, path, samples)


def _write_contrastive(
    model: MbsdForContrastive, path: Path, max_text_tokens: int, ends: tuple[int, int]
) -> dict[str, float]:
    samples = _samples(model.config, max_text_tokens, ends)
    names = ["text_embeds", "image_embeds"]
    dims = torch.export.Dim("texts"), torch.export.Dim("pictures")
    inputs = _padded(samples, "full")
    pictures = {name: torch.cat([inputs[name], inputs[name][:2]]) for name in ("pixel_values", "image_mask")}
    _write(PaddedContrastive(model, ends).eval(), path, inputs | pictures, names, dims)
    found = _run(path, inputs)
    with torch.no_grad():
        embedder = Embedder(model.mbsd, "contrastive", model)
        expected = embedder.of_views(_packed(model, samples, ("text", "image")), ("text", "image"))
    return {
        view: float((torch.from_numpy(vectors) - expected[view].vectors_BE).abs().max())
        for view, vectors in zip(("text", "image"), found, strict=True)
    }


def _write(
    padded: torch.nn.Module, path: Path, inputs: dict[str, Tensor], outputs: list[str], dims: tuple[Any, Any]
) -> None:
    """Trace and write; `dims` are the numbers of texts and of pictures."""
    config: Any = getattr(padded, "model", padded)
    length = torch.export.Dim("length", max=config.mbsd.config.max_position_embeddings)
    text, pictures = {0: dims[0], 1: length}, {0: dims[1]}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators that are not used here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            padded,
            tuple(inputs.values()),
            path,
            input_names=list(INPUTS),
            output_names=outputs,
            dynamic_shapes=(text, text, text, pictures, pictures),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _samples(
    config: Any, max_text_tokens: int, ends: tuple[int, int] | None = None
) -> list[tuple[TextTokens, Tensor | None]]:
    """Samples of several text lengths, with and without query and title; pictures uint8 [3, side, side], or None.

    Args:
        ends: their first and last token; they have no queries then. None: any, with queries.
    """
    rng = np.random.default_rng(0)
    longest = min(max_text_tokens, config.max_position_embeddings)
    side = config.image_size
    made = []
    for query, title, has_image in ((3, 5, True), (0, 7, True), (4, 0, True), (2, longest - 4, True), (5, 6, False)):
        query = 0 if ends else query
        ids = rng.integers(0, config.vocab_size, 2 + query + title)
        if ends:
            ids[[0, -1]] = ends
        types = np.zeros(len(ids), dtype=np.int64)
        num_query = query + 2 if query else 0
        types[num_query or len(ids) :] = 1
        pixels = torch.from_numpy(rng.integers(0, 256, (3, side, side), dtype=np.uint8)) if has_image else None
        made.append((TextTokens(ids, types, num_query), pixels))
    return made


def _padded(samples: list[tuple[TextTokens, Tensor | None]], view: str) -> dict[str, Tensor]:
    """The graph's inputs for one view of the samples, by name."""
    shown = []
    for text, _ in samples:
        ids, types = text.input_ids, text.token_type_ids
        if view == "image":
            ids = ids[: text.num_query] if text.num_query else ids[[0, -1]]
        shown.append((torch.from_numpy(ids), torch.from_numpy(types[: len(ids)])))
    pad = torch.nn.utils.rnn.pad_sequence
    side = next(pixels.shape[-1] for _, pixels in samples if pixels is not None)
    none = torch.zeros(3, side, side, dtype=torch.uint8)
    images = torch.stack([none if pixels is None else pixels for _, pixels in samples])
    has_image = [int(pixels is not None and view != "text") for _, pixels in samples]
    values = (
        pad([ids for ids, _ in shown], batch_first=True),
        pad([torch.ones_like(ids) for ids, _ in shown], batch_first=True),
        pad([types for _, types in shown], batch_first=True),
        normalise_pixels(images, torch.float32),
        torch.tensor(has_image),
    )
    return dict(zip(INPUTS, values, strict=True))


@torch.no_grad()
def _differences(
    model: MbsdPreTrainedModel, path: Path, samples: list[tuple[TextTokens, Tensor | None]]
) -> dict[str, float]:
    batch = _packed(model, samples, VIEW_NAMES)
    has_logits = PaddedMbsd(model).head is not None
    packed: Any = model(batch) if has_logits else PaddedMbsd(model).mbsd(batch)
    differences = {}
    for v, view in enumerate(VIEW_NAMES):
        found = [torch.from_numpy(output) for output in _run(path, _padded(samples, view))]
        largest = float((found[0] - packed.h_VBD[v]).abs().max())
        if has_logits:
            per_view = isinstance(model, MbsdForMatching) and found[1].ndim == 2
            logits = found[1][:, v] if per_view else found[1]
            largest = max(largest, float((logits - packed.logits[v]).abs().max()))
        differences[view] = largest
    return differences


def _packed(
    model: MbsdPreTrainedModel, samples: list[tuple[TextTokens, Tensor | None]], views: tuple[str, ...]
) -> Batch:
    """The same samples as a batch of the model's."""
    texts = [text for text, _ in samples]
    has_image = [pixels is not None for _, pixels in samples]
    patches = model.config.num_image_tokens
    ids_N, positions_N, types_N, plan = pack(texts, has_image, views, patches)
    images = torch.stack([pixels for _, pixels in samples if pixels is not None])
    return Batch(ids_N, positions_N, types_N, images, plan, items_B=torch.arange(len(samples)))


def _run(path: Path, inputs: dict[str, Tensor]) -> list[npt.NDArray[Any]]:
    """The graph's outputs by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs: list[npt.NDArray[Any]] = session.run(None, {name: x.numpy() for name, x in inputs.items()})
    return outputs
