"""Titles and pictures in one space without a network: canonical correlation analysis of simple features.

Both sides are reduced to their principal components and made white; the singular vectors of what then goes together
are the canonical directions, and the singular values their correlations (Hotelling, 1936). The sides of an item are
compared by the cosine of their coordinates, each weighted by a power of its correlation (Gong et al., 2014).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.cross_decomposition import PLSSVD
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import normalize

Features = Any  # [n, F], dense or sparse
Float64 = NDArray[np.float64]

COMPONENTS = 256  # of each side, at most
SHARE = 0.9999  # of the variance that whitening keeps: it would blow up what hardly varies
DIRECTIONS = (16, 32, 64, 128, 256)
POWERS = (0.0, 1.0)  # of a direction's correlation, its weight


@dataclass(frozen=True)
class Canonical:
    """The two sides' ways into the common space; made by `fit_canonical`.

    Attributes:
        directions, power: what a vector is of; chosen by `choose`.
    """

    text_side: Pipeline
    image_side: Pipeline
    shared: PLSSVD
    correlations: Float64
    directions: int
    power: float

    def text(self, features: Features) -> Float64:
        """Unit vectors [n, directions] of titles; zeros for one without a known word."""
        return self._unit(self.shared.transform(self.text_side.transform(features)), features)

    def image(self, features: Features) -> Float64:
        """Unit vectors [n, directions] of pictures; zeros for an item without one."""
        side = self.image_side.transform(features)
        # scikit-learn transforms the second side only together with a first one.
        _, found = self.shared.transform(np.zeros((len(side), self.text_side[-1].n_components_)), side)
        return self._unit(found, features)

    def choose(self, judge: Callable[[Canonical], float]) -> Canonical:
        """The best of all numbers of directions and powers; of equally good ones the first."""
        return max(self._variants(), key=judge)

    def _variants(self) -> Iterator[Canonical]:
        most = len(self.correlations)
        for directions in sorted({min(count, most) for count in DIRECTIONS}):
            for power in POWERS:
                sides = (self.text_side, self.image_side, self.shared, self.correlations)
                yield Canonical(*sides, directions, power)

    def _unit(self, coordinates: Float64, features: Features) -> Float64:
        weighted = coordinates[:, : self.directions] * self.correlations[: self.directions] ** self.power
        found: Float64 = normalize(weighted)
        found[np.asarray(abs(features).sum(axis=1)).reshape(-1) == 0] = 0
        return found


def fit_canonical(text: Features, image: Features) -> Canonical:
    """The canonical directions of n items that have both; all of them count, none is weighted.

    Args:
        text, image: features [n, F] of the same items, two or more.
    """
    text_side, image_side = _white(text), _white(image)
    whitened = text_side.fit_transform(text), image_side.fit_transform(image)
    directions = min(part.shape[1] for part in whitened)
    shared = PLSSVD(n_components=directions, scale=False).fit(*whitened)
    scores = shared.transform(*whitened)
    correlations = np.mean(scores[0] * scores[1], axis=0).clip(0, 1)
    return Canonical(text_side, image_side, shared, correlations, directions, 0.0)


def _white(features: Features) -> Pipeline:
    """Reduce to principal components of variance 1."""
    count, width = features.shape
    kept = min(COMPONENTS, count - 1, width - 1)
    reduce = TruncatedSVD(kept, random_state=0) if scipy.sparse.issparse(features) else PCA(kept, random_state=0)
    return Pipeline([("reduce", reduce), ("whiten", PCA(SHARE, whiten=True))])
