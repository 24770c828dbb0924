"""Held-out titles and pictures that find each other: how often, and the nearest ones to look at."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbsd.batch import NO_KEY
from mbsd.catalog.several import called
from mbsd.data.samples import Sample
from mbsd.metrics.board import Board
from mbsd.metrics.pictures import grid
from mbsd.metrics.ranking import Identified, ranking
from mbsd.model.heads import MbsdForContrastive
from mbsd.stages.global_batch import Vectors
from mbsd.stages.showcase import AT_ONCE, HeldOut

AMONG, QUERIES, NEAREST = 128, 6, 5
METRICS, DIRECTIONS = ("r1", "r10"), ("text_to_image", "image_to_text", "mean")
FOUND = tuple(f"{name}_{direction}" for name in METRICS for direction in DIRECTIONS)  # what `retrieval` gives


def retrieval(rows: Vectors) -> dict[str, float]:
    """r1 and r10 of titles that look for pictures, of pictures that look for titles, and their mean.

    A query is right where an item of its product is among the first one or ten; whoever has no such candidate does not
    count, and without any query a metric is 0. Vectors that are no numbers rank nothing: NaN.
    """
    numbers = np.arange(len(rows.keys_nK))
    titles, pictures = (
        Identified(vectors, numbers, rows.keys_nK.cpu().numpy()).where(torch.nonzero(has)[:, 0].cpu().numpy())
        for vectors, has in ((rows.text_nE, rows.has_text_n), (rows.image_nE, rows.has_image_n))
    )
    found = {"text_to_image": _means(titles, pictures), "image_to_text": _means(pictures, titles)}
    found["mean"] = {name: sum(means[name] for means in found.values()) / len(found) for name in METRICS}
    return {f"{name}_{direction}": means[name] for name in METRICS for direction, means in found.items()}


def _means(queries: Identified, candidates: Identified) -> dict[str, float]:
    if not (queries.vectors.isfinite().all() and candidates.vectors.isfinite().all()):
        return dict.fromkeys(METRICS, math.nan)
    found = ranking(queries, candidates)
    return found.means(METRICS) if len(found.rows) else dict.fromkeys(METRICS, 0.0)


@dataclass(frozen=True)
class _Shown:
    """Some held-out samples on the host: their vectors, and pictures uint8 [h, w, 3], white where there is none."""

    samples: list[Sample]
    vectors: Vectors
    pictures: list[NDArray[np.uint8]]


def show_nearest(model: MbsdForContrastive, board: Board, step: int, few: HeldOut) -> None:
    """Of a few held-out samples: the five nearest pictures to each title, the five nearest titles to each picture."""
    shown = _encode(model, few)
    queries = range(0, len(shown.samples), max(1, len(shown.samples) // QUERIES))[:QUERIES]
    rows = shown.vectors
    pictures = _nearest(rows.text_nE, rows.image_nE, rows.has_image_n)
    titles = _nearest(rows.image_nE, rows.text_nE, rows.has_text_n)
    board.text(step, "nearest/titles_of_pictures", _table(shown, queries, titles, few))
    board.text(step, "nearest/pictures_of_titles", _table(shown, queries, pictures, few))
    # The query's own picture, and beside it those that its title finds.
    sheet = [[shown.pictures[n] for n in (query, *pictures[query])] for query in queries]
    width = min(len(row) for row in sheet)
    board.picture(step, "nearest/pictures_of_titles", grid([row[:width] for row in sheet]))


def _encode(model: MbsdForContrastive, few: HeldOut) -> _Shown:
    samples, parts = few.spread(AMONG), []
    pictures: list[NDArray[np.uint8]] = []
    for start in range(0, len(samples), AT_ONCE):
        batch = few.batch(samples[start : start + AT_ONCE])
        parts.append(Vectors.of(model(batch), batch))
        images = iter(batch.images.permute(0, 2, 3, 1).cpu().numpy())
        white = np.full((*batch.images.shape[2:], 3), 255, dtype=np.uint8)
        pictures += [next(images) if has else white for has in batch.has_image.tolist()]
    rows = Vectors(*(column.cpu() for column in Vectors.joined(parts).columns))
    return _Shown(samples, rows, pictures)


def _nearest(queries_nE: Tensor, candidates_nE: Tensor, has_n: Tensor) -> list[list[int]]:
    """For each query the numbers of its nearest candidates, of those that there are."""
    scores = (queries_nE @ candidates_nE.T).masked_fill(~has_n, -torch.inf)
    count = min(NEAREST, int(has_n.sum()))
    found: list[list[int]] = scores.topk(count, dim=1).indices.tolist()
    return found


def _table(shown: _Shown, queries: range, nearest: list[list[int]], few: HeldOut) -> str:
    """In markdown; items of the query's own product in bold."""
    keys = shown.vectors.keys_nK
    lines = ["| item | " + " | ".join(str(n + 1) for n in range(NEAREST)) + " |", "|---" * (NEAREST + 1) + "|"]
    for query in queries:
        same = ((keys[query] == keys) & (keys != NO_KEY)).any(1)
        same[query] = True
        cells = [_title(few, shown.samples[query])]
        for n in nearest[query]:
            title = _title(few, shown.samples[n])
            cells.append(f"**{title}**" if same[n] else title)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _title(few: HeldOut, sample: Sample) -> str:
    return (
        " ".join(few.catalog.title(sample.item).replace("|", "/").split())
        or f"(item {called(few.catalog, sample.item)}, no title)"
    )
