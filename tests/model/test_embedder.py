"""Vectors of a batch in each view: what is projected, what mean is made of, and who has none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mbsd.errors import UserError
from mbsd.model.embedder import Embedder, load_embedder, shown_for
from mbsd.model.heads import MbsdForContrastive, MbsdForMaskedModelling, MbsdForMatching
from mbsd.model.mbsd import MbsdConfig
from tests.model.reference import Sample, hand_batch, random_samples, randomise, tiny_config

# Both, a title alone, a picture alone, neither, both again.
LAYOUT = ((None, 5, True), (None, 9, False), (None, None, True), (None, None, False), (None, 1, True))
TEXT, IMAGE = [True, True, False, False, True], [True, False, True, False, True]


def contrastive(projection: str) -> tuple[MbsdForContrastive, MbsdConfig, list[Sample]]:
    config = tiny_config(projection_dim=7, projection=projection)
    head = MbsdForContrastive(config).eval()
    randomise(head, seed=81)
    return head, config, random_samples(LAYOUT, seed=82)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("projection", ["per_view", "shared"])
def test_contrastive_vectors_in_each_view(projection: str) -> None:
    """From h, in float64; who lacks a modality has zeros, and mean of the other one alone."""
    head, config, samples = contrastive(projection)
    embedder = Embedder(head.mbsd, "contrastive", head)
    views = ("text", "image", "mean", "full")
    with torch.no_grad():
        found = embedder.of_views(hand_batch(samples, shown_for(views), config), views)
        h = head.mbsd.encode(hand_batch(samples, ("full", "text", "image"), config)).h_VBD.double().numpy()
    weights = head.text_projection.weight.detach().double().numpy()
    image_weights = weights if head.image_projection is None else head.image_projection.weight.detach().double().numpy()
    assert (head.image_projection is None) == (projection == "shared")
    text, image = unit(h[1] @ weights.T), unit(h[2] @ image_weights.T)
    has_text, has_image = np.array(TEXT), np.array(IMAGE)
    either = has_text | has_image
    mean = np.zeros_like(text)
    mean[either] = unit((text * has_text[:, None] + image * has_image[:, None])[either])
    expected = {
        "text": (text * has_text[:, None], has_text), "image": (image * has_image[:, None], has_image),
        "mean": (mean, either), "full": (h[0] * either[:, None], either),
    }  # fmt: skip
    assert list(found) == list(views)
    for view, (vectors, present) in expected.items():
        assert found[view].vectors_BE.dtype == torch.float32
        assert found[view].vectors_BE.shape == (5, embedder.width(view)) == (5, 32 if view == "full" else 7)
        assert np.abs(found[view].vectors_BE.numpy() - vectors).max() < 1e-6, view
        assert found[view].present_B.tolist() == present.tolist(), view


def test_one_view_is_what_it_is_among_others() -> None:
    head, config, samples = contrastive("per_view")
    embedder = Embedder(head.mbsd, "contrastive", head)
    assert shown_for(("mean",)) == ("text", "image") == shown_for(("image", "mean"))
    assert shown_for(("text", "full")) == ("full", "text")
    with torch.no_grad():
        among = embedder.of_views(hand_batch(samples, ("text", "image"), config), ("text", "image"))
        for view in ("text", "image"):
            alone = embedder.of_views(hand_batch(samples, (view,), config), (view,))[view]
            assert torch.allclose(alone.vectors_BE, among[view].vectors_BE, atol=1e-6)
            assert alone.present_B.equal(among[view].present_B)


def test_what_a_folder_gives(tmp_path: Path) -> None:
    """auto by the stage; a model without projections has no contrastive vectors, a contrastive one has h too."""
    kinds = {"contrastive": MbsdForContrastive, "mean": MbsdForMaskedModelling, "h": MbsdForMatching}
    for vector, kind in kinds.items():
        kind(tiny_config(projection_dim=7)).save_pretrained(tmp_path / vector)
        assert load_embedder(tmp_path / vector, 64).vector == vector
    with pytest.raises(UserError, match=r"holds a MbsdForMatching without projections.*contrastive stage"):
        load_embedder(tmp_path / "h", 64, "contrastive")
    as_h = load_embedder(tmp_path / "contrastive", 64, "h")
    assert as_h.width("text") == as_h.width("full") == 32
    projected = load_embedder(tmp_path / "contrastive", 64)
    batch = hand_batch(random_samples(LAYOUT, seed=83), ("text", "image"), tiny_config())
    with torch.no_grad():
        assert projected.eval()(batch).shape == (2, 5, 7)
        assert as_h.eval()(batch).shape == (2, 5, 32)
        with pytest.raises(UserError, match="view full is not in the space"):
            projected(hand_batch(random_samples(LAYOUT, seed=83), ("full",), tiny_config()))
