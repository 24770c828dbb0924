"""What a published image model is shown: pixels normalised its own way, and positions of a picture of its own size.

Both are made good in its weights, so that the same picture gives the same patches as before.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from mbsd.errors import UserError
from mbsd.model.patchify import IMAGE_MEAN, IMAGE_STD
from mbsd.model.published.hub import optional_json

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
OURS: Statistics = (IMAGE_MEAN, IMAGE_STD)
CLIPS: Statistics = (tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD))
HALVES: Statistics = ((0.5,) * 3, (0.5,) * 3)


def pixel_statistics(path: str, default: Statistics, setting: str) -> tuple[Statistics, str]:
    """Mean and deviation by which the model's pixels (0 … 1) were normalised, and a note on where they are from.

    Args:
        path: folder or hub name.
        default: where it has no preprocessor_config.json.

    Raises:
        UserError: the file cannot be read, or the hub be asked for it.
    """
    try:
        found = optional_json(path, "preprocessor_config.json")
        if found is None:  # newer versions of transformers write it into another file
            found = (optional_json(path, "processor_config.json") or {}).get("image_processor", {})
        if "image_mean" not in found:
            return default, f"no preprocessor_config.json: pixels normalised by mean {_shown(default[0])}"
        scale = 255 * found.get("rescale_factor", 1 / 255)
        mean, std = found["image_mean"], found["image_std"]
        if found.get("do_normalize") is False:
            mean, std = (0.0,) * 3, (1.0,) * 3
        of_red, of_green, of_blue = ((m / scale, s / scale) for m, s in zip(mean, std, strict=True))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{setting}: its preprocessor_config.json cannot be read ({str(error).splitlines()[0]}), by which its "
            "pixels were normalised; mend or download it"
        ) from error
    own = tuple(zip(of_red, of_green, of_blue, strict=True))
    return (own[0], own[1]), f"pixels normalised by its mean {_shown(own[0])}"


def fold_statistics(weight: Tensor, bias: Tensor | None, theirs: Statistics) -> tuple[Tensor, Tensor]:
    """Weight and bias of a projection of patches that gives, of pixels normalised as ours are, what the published one
    gives of pixels normalised as its own.

    Its pixel is (v - m') / s', ours x = (v - m) / s: so its pixel is x * s / s' + (m - m') / s', channel by channel.

    Args:
        weight: [D, 3, side, side].
        bias: [D]; None where it has none.
        theirs: m' and s'.
    """
    bias = torch.zeros(len(weight)) if bias is None else bias
    if theirs == OURS:
        return weight, bias
    (m, s), (their_m, their_s) = (
        (torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))
        for mean, std in (OURS, theirs)
    )
    wide = weight.double()
    shift = torch.einsum("dchw,c->d", wide, (m - their_m) / their_s)
    scaled = wide * (s / their_s)[None, :, None, None]
    return scaled.to(weight.dtype), (bias.double() + shift).to(weight.dtype)


def resize_positions(positions_PD: Tensor, grid: int, setting: str, *, aligned: bool) -> tuple[Tensor, str | None]:
    """Positions of [CLS] and of a grid x grid of patches, from those of another grid; and a note where they changed.

    Args:
        positions_PD: [1 + patches, D].
        grid: patches along the side of our picture.
        aligned: as transformers' ViLT does it, bilinear between the corners; else as its ViT and CLIP, bicubic.

    Raises:
        UserError: the published positions are not of a square.
    """
    own = math.isqrt(len(positions_PD) - 1)
    if own**2 != len(positions_PD) - 1:
        raise UserError(
            f"{setting}: has {len(positions_PD) - 1} positions of patches, which are no square; name a model of square "
            "pictures"
        )
    if own == grid:
        return positions_PD, None
    laid_out = positions_PD[1:].T.reshape(1, -1, own, own)
    mode: dict[str, Any] = {"mode": "bilinear", "align_corners": True} if aligned else {"mode": "bicubic"}
    resized = F.interpolate(laid_out, size=(grid, grid), **mode)
    note = f"positions of {own} x {own} patches resized to {grid} x {grid} ({mode['mode']})"
    return torch.cat([positions_PD[:1], resized[0].flatten(1).T]), note


def _shown(mean: tuple[float, ...]) -> str:
    return "/".join(f"{value:.3g}" for value in mean)
