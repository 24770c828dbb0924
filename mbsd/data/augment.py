"""Catalogue → batches: what becomes of a training picture, drawn before anything is decoded.

A window is (x0, y0, x1, y1) as shares of the picture's width and height. Both decoders round it to the same whole
pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Windows = npt.NDArray[np.float64]
Flips = npt.NDArray[np.bool_]
Colours = npt.NDArray[np.float64]

WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)
ASPECT_RATIOS = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Augmentation:
    """Of I pictures.

    Attributes:
        windows: float64 [I, 4]; what is cut out.
        flips: bool [I]; mirror left and right.
        colours: float64 [I, 3]; factors of brightness, contrast and saturation; None: leave the colours alone.
    """

    windows: Windows
    flips: Flips
    colours: Colours | None = None

    def __len__(self) -> int:
        return len(self.flips)

    def __getitem__(self, part: slice) -> Augmentation:
        return Augmentation(self.windows[part], self.flips[part], None if self.colours is None else self.colours[part])


def no_augmentation(num_images: int) -> Augmentation:
    """The whole pictures as they are."""
    return Augmentation(np.tile(WHOLE_IMAGE, (num_images, 1)), np.zeros(num_images, dtype=bool))


def draw_augmentation(
    rngs: Sequence[np.random.Generator],
    crop_scale: tuple[float, float],
    flip_probability: float,
    colour_jitter: float = 0.0,
) -> Augmentation:
    """Each picture's own window, mirroring and colours.

    Args:
        rngs: one a picture.
        crop_scale: as of training_window.
        flip_probability: as of training_window.
        colour_jitter: factors of brightness, contrast and saturation are uniform in 1 - it ... 1 + it; 0: none.
    """
    drawn = [training_window(rng, crop_scale, flip_probability) for rng in rngs]
    windows = np.array([window for window, _ in drawn], dtype=np.float64).reshape(-1, 4)
    flips = np.array([flip for _, flip in drawn], dtype=bool)
    if not colour_jitter:
        return Augmentation(windows, flips)
    colours = np.array([rng.uniform(1 - colour_jitter, 1 + colour_jitter, 3) for rng in rngs]).reshape(-1, 3)
    return Augmentation(windows, flips, colours)


def pixels(window: Windows, width: int, height: int) -> tuple[int, int, int, int]:
    """The window in whole pixels: left, top, right, bottom; at least one pixel wide and high."""
    left = min(math.floor(window[0] * width + 0.5), width - 1)
    top = min(math.floor(window[1] * height + 0.5), height - 1)
    right = min(max(math.floor(window[2] * width + 0.5), left + 1), width)
    bottom = min(max(math.floor(window[3] * height + 0.5), top + 1), height)
    return left, top, right, bottom


def training_window(
    rng: np.random.Generator, crop_scale: tuple[float, float], flip_probability: float
) -> tuple[tuple[float, float, float, float], bool]:
    """A random window and whether to mirror it.

    The share of the area is uniform in crop_scale, the aspect ratio relative to the picture's own log-uniform in
    3/4 ... 4/3 (as far as a window of that area can have it), the place uniform.
    """
    scale, shape, across, down, mirror = rng.random(5).tolist()
    area = crop_scale[0] + scale * (crop_scale[1] - crop_scale[0])
    low, high = math.log(max(ASPECT_RATIOS[0], area)), math.log(min(ASPECT_RATIOS[1], 1 / area))
    ratio = math.exp(low + shape * (high - low))
    width, height = min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))
    x0, y0 = across * (1 - width), down * (1 - height)
    return (x0, y0, x0 + width, y0 + height), mirror < flip_probability
