"""What a model without training sees of an item: its words, its colours, its edges (the floors of `tasks.floors`)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from PIL import Image
from skimage.feature import hog
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from mbsd.catalog.word_forms import UNSPACED
from mbsd.errors import UserError
from mbsd.io.console import say

Int64 = NDArray[np.int64]
Features = Any  # [items, features], dense or sparse

WORD = rf"(?u)[{UNSPACED}]|[^\W{UNSPACED}]+"
BINS = 8  # of each colour channel
SIDE = 64  # pixels that edges are looked for in
MAX_EDGES = 256  # components that are kept of the gradients' histograms


class Shown(Protocol):
    """What is read of a catalogue, or of several."""

    path: Path

    def title(self, item: int) -> str:
        """Return an item's title."""

    def whole_image(self, item: int, say: Callable[[str], None]) -> bytes | None:
        """Return its JPEG bytes."""


def vocabulary(catalog: Shown, train: Int64) -> TfidfVectorizer:
    """TF-IDF of words and pairs of words that occur in two titles of `train` or more; where words touch each other
    (Chinese), of letters and pairs of letters.

    Raises:
        UserError: no word does.
    """
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=WORD)
    try:
        return vectorizer.fit(catalog.title(item) for item in train.tolist())
    except ValueError:
        raise UserError(
            f"catalogue {catalog.path}: no word occurs in two of the {len(train)} training titles; use more items"
        ) from None


def words(catalog: Shown, items: Int64, train: Int64) -> Features:
    """TF-IDF of titles: [items, words] (sparse)."""
    return vocabulary(catalog, train).transform(catalog.title(item) for item in items.tolist())


def colours(catalog: Shown, items: Int64, train: Int64) -> Features:
    """Joint histogram of red, green and blue, each pixel's share square-rooted (Hellinger): [items, BINS^3]."""

    def of_picture(picture: Image.Image) -> NDArray[np.float32]:
        pixels = np.asarray(picture, dtype=np.int64).reshape(-1, 3) * BINS // 256
        counts = np.bincount(pixels @ np.array([BINS * BINS, BINS, 1]), minlength=BINS**3)
        shares: NDArray[np.float64] = counts / counts.sum()
        return np.sqrt(shares).astype(np.float32)

    return _of_pictures(catalog, items, of_picture, BINS**3)


def edges(catalog: Shown, items: Int64, train: Int64) -> Features:
    """Histograms of oriented gradients of the grey picture, their principal components: [items, <= MAX_EDGES]."""

    def of_picture(picture: Image.Image) -> NDArray[np.float32]:
        grey = np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        found: NDArray[np.float32] = hog(grey, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2))
        return found.astype(np.float32)

    blocks = SIDE // 8 - 1
    all_nF = _of_pictures(catalog, items, of_picture, blocks * blocks * 4 * 9)
    learned = all_nF[np.isin(items, train)]
    pca = PCA(min(MAX_EDGES, *learned.shape), svd_solver="randomized", random_state=0).fit(learned)
    return normalize(pca.transform(all_nF))


def together(*parts: Features) -> Features:
    """Several features of the same items, side by side."""
    return scipy.sparse.hstack([scipy.sparse.csr_matrix(part) for part in parts]).tocsr()


FEATURES: Mapping[str, Callable[[Shown, Int64, Int64], Features]] = {
    "tfidf": words,
    "colours": colours,
    "hog": edges,
}


def _of_pictures(
    catalog: Shown, items: Iterable[int], of_picture: Callable[[Image.Image], NDArray[np.float32]], width: int
) -> NDArray[np.float32]:
    """[items, width] float32; zeros where an item has no picture, or a damaged one, which is named."""
    rows = []
    for item in items:
        jpeg = catalog.whole_image(int(item), say)
        rows.append(np.zeros(width, np.float32) if jpeg is None else of_picture(Image.open(io.BytesIO(jpeg))))
    return np.stack(rows)
