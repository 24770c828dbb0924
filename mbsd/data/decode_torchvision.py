"""Catalogue → batches: JPEG bytes to pixels with torchvision, the reference, behind the interface of both decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

from mbsd.data.augment import Augmentation, Windows, pixels


class ImageDecoder(Protocol):
    """Decode, cut out, resize, mirror: what both implementations do.

    Attributes:
        size: height and width of the result, in pixels.
        in_worker: whether it runs in the loader's workers, or else in the training process on the bytes they deliver.
    """

    size: int
    in_worker: bool

    def decode(self, jpegs: Sequence[bytes], augmentation: Augmentation) -> Tensor:
        """Pixels of I pictures, uint8 [I, 3, size, size] RGB.

        Args:
            jpegs: I encoded pictures, known to decode.
            augmentation: of I pictures.
        """
        ...


class TorchvisionDecoder:
    """The reference: libjpeg-turbo, bilinear with antialias, on one CPU thread."""

    in_worker = True

    def __init__(self, size: int) -> None:
        self.size = size

    def decode(self, jpegs: Sequence[bytes], augmentation: Augmentation) -> Tensor:
        """See ImageDecoder."""
        images = torch.empty((len(jpegs), 3, self.size, self.size), dtype=torch.uint8)
        # Pictures are small: several threads on one of them wait for each other, on a busy machine ten times as long.
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for index, jpeg in enumerate(jpegs):
                image = self._decode_one(jpeg, augmentation.windows[index])
                if augmentation.colours is not None:
                    image = _coloured(image, augmentation.colours[index])
                images[index] = image.flip(-1) if augmentation.flips[index] else image
        finally:
            torch.set_num_threads(num_threads)
        return images

    def _decode_one(self, jpeg: bytes, window: Windows) -> Tensor:
        image = decode_jpeg(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), mode=ImageReadMode.RGB)
        left, top, right, bottom = pixels(window, image.shape[2], image.shape[1])
        resized: Tensor = functional.resize(image[:, top:bottom, left:right], [self.size, self.size], antialias=True)
        return resized


def _coloured(image: Tensor, factors: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Tensor:
    brightness, contrast, saturation = factors.tolist()
    image = functional.adjust_brightness(image, brightness)
    image = functional.adjust_contrast(image, contrast)
    coloured: Tensor = functional.adjust_saturation(image, saturation)
    return coloured
