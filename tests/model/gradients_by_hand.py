"""Gradient targets a second time, pixel by pixel in float64."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Float64 = NDArray[np.float64]


def histograms_by_hand(image: NDArray[np.uint8]) -> Float64:
    """uint8 [3, h, w] -> [h / 8, w / 8, 9], the mean over a cell's pixels of the gradients in each direction."""
    levels = image.astype(np.float64)
    _, height, width = image.shape
    found = np.zeros((height // 8, width // 8, 9))
    for y in range(height):
        for x in range(width):
            best = (0.0, 0.0, 0.0)
            for channel in levels:
                down = channel[y + 1, x] - channel[y - 1, x] if 0 < y < height - 1 else 0.0
                right = channel[y, x + 1] - channel[y, x - 1] if 0 < x < width - 1 else 0.0
                if down**2 + right**2 > best[0]:
                    best = (down**2 + right**2, down, right)
            angle = math.degrees(math.atan2(best[1], best[2])) % 180
            found[y // 8, x // 8, int(angle // 20)] += math.sqrt(best[0]) / 64
    return found


def targets_by_hand(image: NDArray[np.uint8], side: int) -> Float64:
    """uint8 [3, h, w] -> [patches, 12 * cells]."""
    histograms = histograms_by_hand(image)
    rows = []
    for top in range(0, image.shape[1], side):
        for left in range(0, image.shape[2], side):
            numbers: list[float] = []
            for y in range(top, top + side, 8):
                for x in range(left, left + side, 8):
                    cell = histograms[y // 8, x // 8]
                    numbers += (cell / math.sqrt((cell**2).sum() + 2.0**2) / 0.2).tolist()
                    means = image[:, y : y + 8, x : x + 8].astype(np.float64).mean((1, 2)) / 255
                    numbers += ((means - MEAN) / STD).tolist()
            rows.append(numbers)
    return np.array(rows)
