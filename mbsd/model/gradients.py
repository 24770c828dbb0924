"""What masked patches may predict instead of pixels: histograms of gradients, and colours (MaskFeat, Wei et al. 2022).

A patch is cut into cells of 8 x 8 pixels. Of each cell: how much of its gradient points in which of 9 directions, as
scikit-image's `hog` counts it, and its mean colour. Computed of the pictures as the model is given them, after crop and
flip, on the device where they are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mbsd.errors import UserError
from mbsd.model.patchify import IMAGE_MEAN, IMAGE_STD, patches_to_pixels, pixels_of_patches

CELL, ORIENTATIONS, COLOURS = 8, 9, 3
CELL_SIZE = ORIENTATIONS + COLOURS  # numbers of a cell
# In levels of 255: a cell whose gradient is less shows the noise of its JPEG, whose direction nobody predicts.
FLAT = 2.0
# The deviation of a histogram's numbers over 1,000 product photos is 0.21; that of normalised colours is about 1.
HISTOGRAM_STD = 0.2


def gradient_target_size(patch_side: int, setting: str = "masking.mpm_target=hog") -> int:
    """Numbers of a patch.

    Args:
        patch_side: pixels.
        setting: that asks for them.

    Raises:
        UserError: it cannot be cut into cells.
    """
    if patch_side % CELL:
        raise UserError(
            f"{setting}: its cells are {CELL} pixels wide and the model's patches {patch_side}, the product of "
            f"model.patchify_strides; choose a multiple of {CELL}, or leave the setting out"
        )
    return (patch_side // CELL) ** 2 * CELL_SIZE


def patch_targets(config: Any, images: Tensor, pixels: Tensor, rows_Q: Tensor) -> Tensor:
    """The pixels of Q patches, [Q, 3 * patch_side**2] (Eq. 2), or with `mpm_target: hog` their gradients and colours.

    Args:
        config: BackboneConfig, whose module imports this one.
        images, pixels, rows_Q: as `Backbone.image_targets` takes them.
    """
    if config.mpm_target == "hog":
        return gradient_targets(images, config.patch_side, rows_Q)
    return pixels_of_patches(pixels, config.patch_side)[rows_Q]


def gradient_targets(images: Tensor, patch_side: int, rows_Q: Tensor) -> Tensor:
    """The targets of Q patches, each number of about unit deviation.

    Args:
        images: uint8 [I, 3, h, w].
        patch_side: pixels.
        rows_Q: int64; patches, of I * patches.

    Returns:
        float32 [Q, gradient_target_size]; cell after cell, 9 directions / `HISTOGRAM_STD` and the normalised colour.
    """
    levels = _with_neighbours(images, patch_side, rows_Q).float()
    histograms = cell_histograms(*pixel_gradients(levels))
    length = (histograms.square().sum(-1, keepdim=True) + FLAT**2).sqrt()
    colours = _normalised(_by_cells(levels[..., 1:-1, 1:-1]).mean(-1))
    return torch.cat([histograms / (length * HISTOGRAM_STD), colours], dim=-1).flatten(1)


def pixel_gradients(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Size and direction of the gradient at each pixel, in the channel where it is largest (the first of equals).

    Args:
        levels: [Q, channels, side + 2, side + 2]; whole numbers, with the neighbours around each patch.

    Returns:
        Size in levels, and direction, a whole number of 0 ... 8 for angles from 0 to 180 degrees in steps of 20:
        [Q, 1, side, side] both.
    """
    down = levels[:, :, 2:, 1:-1] - levels[:, :, :-2, 1:-1]
    right = levels[:, :, 1:-1, 2:] - levels[:, :, 1:-1, :-2]
    squares = torch.addcmul(down * down, right, right)
    largest, y, x = squares[:, :1], down[:, :1], right[:, :1]
    for channel in range(1, levels.shape[1]):
        one = slice(channel, channel + 1)
        # As numbers, which are whole and therefore exact: `torch.where` takes several times longer on a CPU.
        larger = (squares[:, one] > largest).to(levels.dtype)
        largest = torch.maximum(largest, squares[:, one])
        y = torch.addcmul(y, larger, down[:, one] - y)
        x = torch.addcmul(x, larger, right[:, one] - x)
    # The gradient or its opposite, whichever points down; 0 where neither does, and no negative zero, which is 180.
    angle = torch.atan2(y.abs(), x * y.sign() + 0.0)
    return largest.sqrt(), (angle * (ORIENTATIONS / math.pi)).floor()


def cell_histograms(sizes: Tensor, directions: Tensor) -> Tensor:
    """Mean over each cell's pixels of the gradients in each direction: [Q, cells, 9].

    Args:
        sizes, directions: [Q, 1, side, side], as `pixel_gradients` gives them.
    """
    sizes, directions = _by_cells(sizes), _by_cells(directions)
    # 1 where the direction is the n-th, else 0: the numbers are whole.
    parts = [(sizes * (1 - (directions - n).abs()).clamp_min(0)).mean(-1) for n in range(ORIENTATIONS)]
    return torch.cat(parts, dim=-1)


def draw_gradients(values: Tensor, patch_side: int) -> Tensor:
    """Targets, or predictions of them, as pixels to look at: each cell in its colour, a line along each edge in it.

    A line is as dark, on dark cells as bright, as the share of its direction.

    Args:
        values: [Q, gradient_target_size].

    Returns:
        Normalised pixels [Q, 3 * patch_side**2], channel first, as `pixels_of_patches` cuts them.
    """
    cells = values.float().reshape(-1, CELL_SIZE)
    shares = (cells[:, :ORIENTATIONS] * HISTOGRAM_STD).clamp(0, 1)
    at = torch.arange(CELL, device=values.device) - (CELL - 1) / 2
    angles = (torch.arange(ORIENTATIONS, device=values.device) + 0.5) * (math.pi / ORIENTATIONS)
    # An edge runs across its gradient: its pixels have no part along it.
    along = angles.sin()[:, None, None] * at[:, None] + angles.cos()[:, None, None] * at
    ink = torch.einsum("cn,nyx->cyx", shares, (1 - along.abs()).clamp_min(0)).clamp(0, 1)[:, None]
    colour = cells[:, ORIENTATIONS:, None, None]
    opposite = torch.where(colour.mean(1, keepdim=True) > 0, -2.0, 2.0)
    pixels = (colour + ink * (opposite - colour)).flatten(1)
    return patches_to_pixels(pixels, CELL, (patch_side, patch_side)).flatten(1)


def _with_neighbours(images: Tensor, patch_side: int, rows_Q: Tensor) -> Tensor:
    """[I, 3, h, w] -> those patches with a pixel more on each side: [Q, 3, side + 2, side + 2].

    Around the picture stand its second rows and columns again, so that there is no gradient at its border.
    """
    height, width = images.shape[-2:]
    wide = torch.cat([images[..., 1:2, :], images, images[..., height - 2 : height - 1, :]], dim=-2)
    wide = torch.cat([wide[..., 1:2], wide, wide[..., width - 2 : width - 1]], dim=-1)
    windows = wide.unfold(2, patch_side + 2, patch_side).unfold(3, patch_side + 2, patch_side)
    columns = width // patch_side
    patches = height // patch_side * columns
    place = rows_Q % patches
    return windows.permute(0, 2, 3, 1, 4, 5)[rows_Q // patches, place // columns, place % columns]


def _by_cells(patches: Tensor) -> Tensor:
    """[Q, channels, side, side] -> [Q, cells, channels, pixels of a cell], cells row by row."""
    count, channels, side, _ = patches.shape
    cells = side // CELL
    grid = patches.reshape(count, channels, cells, CELL, cells, CELL)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(count, cells * cells, channels, CELL * CELL)


def _normalised(levels: Tensor) -> Tensor:
    """[..., 3] levels of red, green and blue, as the model's pixels are normalised; nothing is copied to the device."""
    parts = [(levels[..., n] / 255 - IMAGE_MEAN[n]) / IMAGE_STD[n] for n in range(COLOURS)]
    return torch.stack(parts, dim=-1)
