"""A model of the contrastive stage leaves with its projections, and its graph gives what CLIP's users expect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mbsd.batch import Batch
from mbsd.data.views import TextTokens, pack
from mbsd.model.embedder import Embedder
from mbsd.model.heads import MbsdForContrastive
from mbsd.model.mbsd import MbsdConfig, MbsdModel
from mbsd.model.patchify import normalise_pixels
from mbsd.tools.export.onnx_graph import write_graph
from tests.model.reference import CLS, SEP, Sample, deviation, random_samples, randomise, text_of, tiny_config

LAYOUT = ((None, 5, True), (None, 9, True), (None, None, True), (None, 2, False))


@pytest.mark.parametrize("bias", [False, True])
def test_projections_and_temperature_are_kept(bias: bool, tmp_path: Path) -> None:
    """save_pretrained and from_pretrained, bit for bit; AutoModel gives the backbone."""
    from transformers import AutoModel

    model = MbsdForContrastive(tiny_config(projection_dim=7, logit_bias=bias)).eval()
    randomise(model, seed=75)
    model.save_pretrained(tmp_path)
    loaded = MbsdForContrastive.from_pretrained(tmp_path)
    names = {"text_projection.weight", "image_projection.weight", "logit_scale"} | ({"logit_bias"} if bias else set())
    weights = loaded.state_dict()
    assert {name for name in weights if not name.startswith("mbsd.")} == names
    assert all(weight.equal(weights[name]) for name, weight in model.state_dict().items())
    assert loaded.logit_scale.shape == (1,) and loaded.config.projection_dim == 7
    backbone = AutoModel.from_pretrained(tmp_path)
    assert type(backbone) is MbsdModel
    assert all(weight.equal(weights[f"mbsd.{name}"]) for name, weight in backbone.state_dict().items())


def batch_of(samples: list[Sample], ids: list[list[int]], config: MbsdConfig) -> Batch:
    texts = [TextTokens(np.array(row), np.zeros(len(row), dtype=np.int64), 0) for row in ids]
    has_image = [sample.image is not None for sample in samples]
    *streams, views = pack(texts, has_image, ("text", "image"), config.num_patches + 1)
    images = torch.stack([sample.image for sample in samples if sample.image is not None])
    return Batch(*streams, images, views, items_B=torch.arange(len(samples)))


def test_the_graph_gives_both_vectors(tmp_path: Path) -> None:
    """Other numbers of titles and of pictures, also none of one kind: each what the packed forward gives it."""
    import onnxruntime

    config = tiny_config(projection_dim=7, image_cls=True)
    model = MbsdForContrastive(config).eval()
    randomise(model, seed=76)
    largest = write_graph(model, tmp_path / "model.onnx", 144, (CLS, SEP))
    assert set(largest) == {"text", "image"} and max(largest.values()) < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [output.name for output in session.get_outputs()] == ["text_embeds", "image_embeds"]
    samples = random_samples(LAYOUT, seed=77)
    ids = [text_of(sample)[0] for sample in samples]
    with torch.no_grad():
        embedder = Embedder(model.mbsd, "contrastive", model)
        expected = embedder.of_views(batch_of(samples, ids, config), ("text", "image"))
    length = max(map(len, ids))
    padded = np.array([row + [0] * (length - len(row)) for row in ids])
    mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in ids])
    none = torch.zeros(3, 64, 64, dtype=torch.uint8)
    images = torch.stack([none if sample.image is None else sample.image for sample in samples])
    pixels, shown = normalise_pixels(images, torch.float32).numpy(), np.array([1, 1, 1, 0])
    for texts, pictures in ((slice(0, 4), slice(0, 4)), (slice(0, 1), slice(1, 4)), (slice(1, 4), slice(2, 3)),
                            (slice(0, 4), slice(0, 0)), (slice(0, 0), slice(0, 4))):  # fmt: skip
        text, image = session.run(None, {
            "input_ids": padded[texts], "attention_mask": mask[texts], "token_type_ids": np.zeros_like(padded[texts]),
            "pixel_values": pixels[pictures], "image_mask": shown[pictures],
        })  # fmt: skip
        found = {"text": (text, texts), "image": (image, pictures)}
        for view, (vectors, rows) in found.items():
            wanted = expected[view].vectors_BE[rows]
            assert vectors.shape == wanted.shape
            assert not len(wanted) or deviation(torch.from_numpy(vectors), wanted) < 1e-5, (view, texts, pictures)
