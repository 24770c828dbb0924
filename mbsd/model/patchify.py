"""Image -> patch tokens: four small non-overlapping convolutions instead of a heavy feature extractor (Fig. 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# The mean and deviation of ImageNet's pixels, by which the field normalises images.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [I, channels, h, w]."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, each pixel normalised over its channels."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def overlapping_kernel(stride: int) -> int:
    """Side of an overlapping convolution's kernel: it reaches to the middles of its square's neighbours."""
    return 2 * stride - 1


class LastOfBlock(nn.Conv2d):
    """Starts at zero, so that its block starts as the identity."""


class ResidualBlock(nn.Module):
    """x + two 3 x 3 convolutions of it, norms and ReLUs before them (He et al. 2016); the identity at the start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(channels, eps=1e-6), ChannelNorm(channels, eps=1e-6)
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.conv2 = LastOfBlock(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, [I, channels, h, w]."""
        inner = self.conv1(torch.relu(self.norm1(x)))
        found: Tensor = x + self.conv2(torch.relu(self.norm2(inner)))
        return found


class Patchify(nn.Module):
    """Non-overlapping convolutions, kernel = stride; LayerNorm over channels and ReLU between them (SPEC 2).

    Args:
        strides: of the convolutions; their product is the side of a patch in pixels (4 * 2 * 2 * 2 = 32).
        channels: of the outputs of all but the last convolution.
        hidden_size: D, channels of the last. One stride and no channels: the linear patchify of Table 6, row 5.
        blocks: above 0: kernels of `overlapping_kernel(stride)`, and so many residual blocks after each convolution
            between the first and the last. A patch's feature then holds pixels of its neighbours too.
    """

    def __init__(self, strides: Sequence[int], channels: Sequence[int], hidden_size: int, blocks: int = 0) -> None:
        super().__init__()
        if len(channels) != len(strides) - 1:
            raise ValueError(f"{len(strides)} convolutions have {len(strides) - 1} channels between, not {channels}")
        widths = (3, *channels, hidden_size)
        layers: list[nn.Module] = []
        for index, stride in enumerate(strides):
            if index:
                layers += [ChannelNorm(widths[index], eps=1e-6), nn.ReLU()]
            kernel = overlapping_kernel(stride) if blocks else stride
            padding = stride // 2 if blocks else 0
            layers.append(nn.Conv2d(widths[index], widths[index + 1], kernel, stride=stride, padding=padding))
            if 0 < index < len(strides) - 1:
                layers += [ResidualBlock(widths[index + 1]) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers)
        self.patch_side = math.prod(strides)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [I, 3, h, w] -> patch features [I, patches, D]; I may be 0."""
        # Channels last, the LayerNorms between the convolutions read and write rows as they lie in memory.
        features: Tensor = self.layers(pixels.contiguous(memory_format=torch.channels_last))
        return features.flatten(2).transpose(1, 2)


def normalise_pixels(images: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 RGB [I, 3, h, w] -> the network's own input pixels, zero mean and unit deviation."""
    mean, std = _channels(IMAGE_MEAN, images.device), _channels(IMAGE_STD, images.device)
    return ((images.float() / 255 - mean) / std).to(dtype)


def _channels(values: Sequence[float], device: torch.device) -> Tensor:
    """[1, 3, 1, 1], filled on the device: a copy from the host, which `torch.tensor` makes, would be waited for."""
    return torch.cat([torch.full((1, 1, 1, 1), value, device=device) for value in values], dim=1)


def denormalise_pixels(pixels: Tensor) -> Tensor:
    """The inverse of `normalise_pixels`, float: [I, 3, h, w] of 0 … 1 and, for what no picture holds, beyond."""
    mean, std = _channels(IMAGE_MEAN, pixels.device), _channels(IMAGE_STD, pixels.device)
    return pixels.float() * std + mean


def blank_patches(pixels: Tensor, patch_side: int, chosen: Tensor) -> Tensor:
    """[I, 3, h, w] with zeros, the mean colour of normalised pixels, in the patches of `chosen`: bool [I * patches]."""
    images, _, height, width = pixels.shape
    grid = chosen.view(images, 1, height // patch_side, width // patch_side)
    of_pixels = grid.repeat_interleave(patch_side, dim=2).repeat_interleave(patch_side, dim=3)
    return pixels.masked_fill(of_pixels, 0.0)


def patches_to_pixels(patches: Tensor, patch_side: int, size: Sequence[int]) -> Tensor:
    """The inverse of `pixels_of_patches`: [I * patches, 3 * patch_side**2] -> [I, 3, height, width] of `size`."""
    rows, columns = size[0] // patch_side, size[1] // patch_side
    grid = patches.reshape(-1, rows, columns, 3, patch_side, patch_side)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, size[0], size[1])


def pixels_of_patches(pixels: Tensor, patch_side: int) -> Tensor:
    """Cut [I, 3, h, w] into the pixels of each patch: [I * patches, 3 * patch_side**2], channel first, row by row."""
    images, channels, height, width = pixels.shape
    rows, columns = height // patch_side, width // patch_side
    grid = pixels.reshape(images, channels, rows, patch_side, columns, patch_side)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(images * rows * columns, channels * patch_side**2)
