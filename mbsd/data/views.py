"""Catalogue → batches: the token sequence of each view, and the index plan that packs them into one forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mbsd.batch import VIEW_NAMES, Views

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TextTokens:
    """One sample's text (SPEC 1).

    Attributes:
        input_ids: int64 [L]; `[CLS] query [SEP] title [SEP]`, or `[CLS] title [SEP]` of a single text.
        token_type_ids: int64 [L]; 1 for `title [SEP]` behind a query, else 0.
        num_query: rows of `[CLS] query [SEP]`, which the image view shows too; 0 for a single text, whose image view
            shows `[CLS] [SEP]`: its [SEP] stands elsewhere than the text's, so these are rows of their own.
    """

    input_ids: Int64
    token_type_ids: Int64
    num_query: int

    @property
    def has_title(self) -> bool:
        """Whether a word of the title is left."""
        return len(self.input_ids) > (self.num_query or 2)  # without a query: `[CLS] [SEP]`


def pack(
    texts: Sequence[TextTokens],
    has_image: Sequence[bool],
    view_names: Sequence[str],
    patches_per_image: int,
    image_numbers: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Views]:
    """Lay the texts out as one stream, and index the rows that each view of each sample reads.

    The view full is the text and the patches, text the text alone, image `[CLS] query [SEP]` and the patches. A sample
    without an image has no patch rows in any view.

    Args:
        texts: of the B samples.
        has_image: of the B samples.
        view_names: V of batch.VIEW_NAMES.
        patches_per_image: P, the image [CLS] included where there is one.
        image_numbers: which image each sample shows; that of one without an image is not read. Default: each its own,
            in their order.

    Returns:
        input_ids_N, position_ids_N, token_type_ids_N (int64 [N]) and the plan. See batch.Views.
    """
    unknown = [name for name in view_names if name not in VIEW_NAMES]
    if unknown or not view_names:
        raise ValueError(f"views {list(view_names)}: expected one or more of {list(VIEW_NAMES)}")
    lengths_B = np.array([len(text.input_ids) for text in texts], dtype=np.int64)
    queries_B = np.array([text.num_query for text in texts], dtype=np.int64)
    # A single text's `[CLS] [SEP]` for the image view follows its text, where that view is asked for.
    own_rows_B = (queries_B == 0) & ("image" in view_names)
    rows_B = lengths_B + 2 * own_rows_B
    first_row_B = _starts(rows_B)
    num_rows = int(rows_B.sum())

    ids: list[Int64] = []
    types: list[Int64] = []
    for text, own_rows in zip(texts, own_rows_B.tolist(), strict=True):
        ids.append(text.input_ids)
        types.append(text.token_type_ids)
        if own_rows:
            ids.append(text.input_ids[[0, -1]])
            types.append(np.zeros(2, dtype=np.int64))
    part_lengths = np.array([len(part) for part in ids], dtype=np.int64)

    has_image_B = np.asarray(has_image, dtype=bool)
    image_number_B = np.cumsum(has_image_B) - has_image_B if image_numbers is None else np.asarray(image_numbers)
    patch_start_B = num_rows + image_number_B * patches_per_image
    patch_length_B = has_image_B * patches_per_image
    none_B = np.zeros_like(lengths_B)
    image_start_B = np.where(own_rows_B, first_row_B + lengths_B, first_row_B)
    image_length_B = np.where(own_rows_B, 2, queries_B)
    of_view = {
        "full": (first_row_B, lengths_B, patch_start_B, patch_length_B),
        "text": (first_row_B, lengths_B, patch_start_B, none_B),
        "image": (image_start_B, image_length_B, patch_start_B, patch_length_B),
    }
    # Each sequence is a run of text rows and a run of patch rows: [V, B, 2], view after view.
    run_starts = np.stack([np.stack([of_view[name][0], of_view[name][2]], axis=1) for name in view_names])
    run_lengths = np.stack([np.stack([of_view[name][1], of_view[name][3]], axis=1) for name in view_names])
    lengths_S = run_lengths.sum(axis=2).reshape(-1)
    views = Views(
        names=tuple(view_names),
        source_T=torch.from_numpy(_ranges(run_starts.reshape(-1), run_lengths.reshape(-1))),
        cu_seqlens=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths_S)]).astype(np.int32)),
        lengths=tuple(lengths_S.tolist()),
        image_lengths=tuple(run_lengths[..., 1].reshape(-1).tolist()),
    )
    return (
        torch.from_numpy(np.concatenate(ids)),
        torch.from_numpy(_ranges(np.zeros_like(part_lengths), part_lengths)),
        torch.from_numpy(np.concatenate(types)),
        views,
    )


def _starts(lengths: Int64) -> Int64:
    return np.cumsum(lengths) - lengths


def _ranges(starts: Int64, lengths: Int64) -> Int64:
    """The ranges starts[i] : starts[i] + lengths[i], one after the other."""
    return np.repeat(starts - _starts(lengths), lengths) + np.arange(lengths.sum(), dtype=np.int64)
