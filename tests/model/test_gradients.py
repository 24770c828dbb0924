"""Targets of gradients and colours: scikit-image's histograms, float64 by hand, their rows, their drawing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.feature import hog
from torch import Tensor

from mbsd.errors import UserError
from mbsd.model.gradients import (
    cell_histograms,
    draw_gradients,
    gradient_target_size,
    gradient_targets,
    pixel_gradients,
)
from mbsd.model.patchify import normalise_pixels, patches_to_pixels, pixels_of_patches
from tests.model.gradients_by_hand import histograms_by_hand, targets_by_hand

KINDS = ("noise", "smooth", "two levels", "edges on white")


def pictures(kind: str, count: int, side: int) -> Tensor:
    """uint8 [count, 3, side, side]."""
    generator = torch.Generator().manual_seed(len(kind))
    noise = torch.randint(0, 256, (count, 3, side, side), generator=generator).float()
    if kind == "smooth":  # like a photo that was enlarged
        noise = torch.nn.functional.interpolate(noise[..., ::8, ::8], (side, side), mode="bicubic").clamp(0, 255)
    elif kind == "two levels":  # many equal gradients, whole channels without any
        noise = noise.gt(200).float() * 40 + 60
        noise[:, 1] = 100
    elif kind == "edges on white":
        noise = torch.full_like(noise, 255)
        noise[..., 5 : side // 2, 11 : side - 9] = torch.tensor([20.0, 90.0, 200.0])[:, None, None]
        noise[0, :, side // 2, ::7] -= 1  # what a JPEG leaves
    return noise.round().to(torch.uint8)


def of_skimage(image: Tensor, cells_per_block: int) -> np.ndarray:
    """[h / 8, w / 8, 9]: histograms of 8-pixel cells, divided by their block's length."""
    found = hog(
        image.permute(1, 2, 0).numpy(), orientations=9, pixels_per_cell=(8, 8), block_norm="L2", channel_axis=-1,
        cells_per_block=(cells_per_block, cells_per_block), feature_vector=False,
    )  # fmt: skip
    return found[:, :, 0, 0] if cells_per_block == 1 else found[0, 0]


def histograms(image: Tensor) -> Tensor:
    """The same of this project, without a division: [h / 8, w / 8, 9]."""
    # A picture is one patch whose neighbours are its own second rows and columns.
    around = torch.nn.functional.pad(image[None].float(), (1, 1, 1, 1), mode="reflect")
    cells = image.shape[1] // 8
    return cell_histograms(*pixel_gradients(around)).view(cells, cells, 9)


@pytest.mark.parametrize("kind", KINDS)
def test_histograms_are_those_of_scikit_image(kind: str) -> None:
    for image in pictures(kind, 3, 48):
        found = histograms(image).double().numpy()
        for own in (found, histograms_by_hand(image.numpy())):
            each = own / np.sqrt((own**2).sum(-1, keepdims=True) + 1e-10)
            assert np.abs(each - of_skimage(image, 1)).max() < 1e-5
            # All cells in one block: their sizes beside each other too.
            together = own / np.sqrt((own**2).sum() + 1e-10)
            assert np.abs(together - of_skimage(image, 6)).max() < 1e-5
        assert found.max() > 1


@pytest.mark.parametrize("side", [8, 16, 24])
@pytest.mark.parametrize("kind", KINDS)
def test_targets_by_hand(kind: str, side: int) -> None:
    """All patches of several pictures at once; a gradient looks beyond its patch, not beyond its picture."""
    images = pictures(kind, 2, 48)
    patches = 2 * (48 // side) ** 2
    expected = np.concatenate([targets_by_hand(image.numpy(), side) for image in images])
    found = gradient_targets(images, side, torch.arange(patches))
    assert found.dtype == torch.float32 and found.shape == (patches, gradient_target_size(side))
    assert np.abs(found.numpy() - expected).max() < 1e-5


def test_of_some_patches_as_of_all() -> None:
    images = pictures("smooth", 3, 32)
    every = gradient_targets(images, 16, torch.arange(12))
    rows = torch.tensor([11, 0, 5, 5, 8])
    assert torch.equal(gradient_targets(images, 16, rows), every[rows])
    assert gradient_targets(images, 16, rows[:0]).shape == (0, 48)
    assert gradient_targets(images[:0], 16, rows[:0]).shape == (0, 48)


def test_numbers_of_photos_weigh_alike() -> None:
    """Directions and colours of pictures with both have deviations of the same order."""
    found = gradient_targets(pictures("smooth", 20, 64), 16, torch.arange(320)).view(-1, 12).std(0)
    assert found.min() > 0.5 and found.max() < 2


def test_patches_without_whole_cells_are_refused() -> None:
    assert gradient_target_size(8) == 12 and gradient_target_size(32) == 192
    with pytest.raises(UserError, match=r"masking\.mpm_target=hog: .* patches 12, .* multiple of 8"):
        gradient_target_size(12)


def test_a_drawing_shows_edges_in_their_direction_and_colours() -> None:
    flat = torch.full((1, 3, 16, 16), 90, dtype=torch.uint8)
    flat[:, 2] = 170
    upright = flat.clone()
    upright[..., :8] = 30
    lying = upright.transpose(2, 3)
    one = torch.zeros(1, dtype=torch.int64)

    def drawn(images: Tensor) -> Tensor:
        pixels: Tensor = draw_gradients(gradient_targets(images, 16, one), 16)
        return patches_to_pixels(pixels, 16, (16, 16))[0]

    as_it_is = pixels_of_patches(normalise_pixels(flat, torch.float32), 16)
    assert torch.allclose(draw_gradients(gradient_targets(flat, 16, one), 16), as_it_is, atol=1e-5)
    for images, across in ((upright, 1), (lying, 0)):  # a line: far more difference across it than along it
        cell = drawn(images).mean(0)[:8, :8]
        assert cell.mean(1 - across).std() > 4 * cell.mean(across).std()
