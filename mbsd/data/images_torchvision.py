"""Catalogue → batches: JPEG bytes to pixels with torchvision, the reference; and what a training crop is.

A window is (x0, y0, x1, y1) as shares of the picture's width and height, so that it can be drawn before anything is
decoded. Both decoders round it to the same whole pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

Windows = npt.NDArray[np.float64]
Flips = npt.NDArray[np.bool_]

WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)
ASPECT_RATIOS = (3 / 4, 4 / 3)


class ImageDecoder(Protocol):
    """Decode, cut out, resize, mirror: what both implementations do.

    Attributes:
        size: height and width of the result, in pixels.
        in_worker: whether it runs in the loader's workers, or else in the training process on the bytes they deliver.
    """

    size: int
    in_worker: bool

    def decode(self, jpegs: Sequence[bytes], windows: Windows, flips: Flips) -> Tensor:
        """Pixels of I pictures, uint8 [I, 3, size, size] RGB.

        Args:
            jpegs: I encoded pictures, known to decode.
            windows: [I, 4].
            flips: bool [I]; mirror left and right.
        """
        ...


class TorchvisionDecoder:
    """The reference: libjpeg-turbo, bilinear with antialias, on one CPU thread."""

    in_worker = True

    def __init__(self, size: int) -> None:
        self.size = size

    def decode(self, jpegs: Sequence[bytes], windows: Windows, flips: Flips) -> Tensor:
        """See ImageDecoder."""
        images = torch.empty((len(jpegs), 3, self.size, self.size), dtype=torch.uint8)
        # Pictures are small: several threads on one of them wait for each other, on a busy machine ten times as long.
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for index, jpeg in enumerate(jpegs):
                images[index] = self._decode_one(jpeg, windows[index], bool(flips[index]))
        finally:
            torch.set_num_threads(num_threads)
        return images

    def _decode_one(self, jpeg: bytes, window: Windows, flip: bool) -> Tensor:
        image: Tensor = decode_jpeg(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), mode=ImageReadMode.RGB)
        left, top, right, bottom = pixels(window, image.shape[2], image.shape[1])
        image = functional.resize(image[:, top:bottom, left:right], [self.size, self.size], antialias=True)
        return image.flip(-1) if flip else image


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
