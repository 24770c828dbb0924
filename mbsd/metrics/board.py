"""TensorBoard's files of a run: curves, pictures, PR curves, vectors, settings, and the screen that shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summaries

# Sections of the screen; what is not named here stands under "train".
SECTIONS = {
    "speed": ("samples_per_s", "tokens_per_s", "mfu", "data_wait", "cpu_cores", "padding_avoided", "memory_gib"),
    "modality": (
        "accuracy_full", "accuracy_text", "accuracy_image", "modality_gap", "text_stronger", "image_stronger",
        "sdmi_weight",
    ),
}  # fmt: skip

MIRROR_FAILURES = "mirror_failures"  # of a run with a mirror, as metrics.jsonl names it

Pages = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Page -> title of a chart -> its tags, as regular expressions of whole tags."""


@dataclass(frozen=True)
class Charts:
    """What a stage adds to the page "custom scalars".

    Attributes:
        pages: its own charts.
        held_out: what its validations log, as metrics.jsonl names it behind `validation/`.
    """

    pages: Pages = field(default_factory=dict)
    held_out: tuple[str, ...] = ("loss",)


# The page "custom scalars": what to watch, and behind it what to look at when that looks wrong. A stage's own charts
# follow the first of each page; a chart none of whose tags is logged is left out.
COMMON: Pages = {
    "watch": {
        "loss": ("train/loss", "validation/loss"),
        "samples a second": ("speed/samples_per_s",),
        "share of time waiting for data": ("speed/data_wait",),
        "gradient norm": ("train/grad_norm",),
        "checkpoints not copied to the mirror": (f"train/{MIRROR_FAILURES}",),
    },
    "machine": {
        "learning rate": ("train/lr",),
        "epochs of each catalogue": (r"train/epoch_.+",),
        "learning rates of the parts": (r"train/lr_(image|backbone|head)",),
        "MFU": ("speed/mfu",),
        "tokens a second": ("speed/tokens_per_s",),
        "cores at work, a rank's": ("speed/cpu_cores",),
        "memory, GiB": ("speed/memory_gib",),
        "share of padding avoided": ("speed/padding_avoided",),
        "loss scale": ("train/loss_scale",),
        "skipped steps": ("train/skipped_steps",),
        "trust ratio, median of a layer": (r"trust_ratio/\w+/median",),
    },
}


class Board:
    """The folder `tensorboard/` of a run.

    Args:
        folder: made where it is missing.
        purge_step: what an earlier start wrote at this step and later is taken back.
        settings: of the run, for the page "hparams".
    """

    def __init__(self, folder: Path, purge_step: int, settings: Mapping[str, bool | int | float | str]) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        self._has_layout = False
        if settings:
            results = {"train/loss": 0.0, "validation/loss": 0.0}  # names; their values are the curves'
            for summary in hparams_summaries(dict(settings), results):
                self._writer._get_file_writer().add_summary(summary)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Tag -> value, as one event: an event each would take several times as long."""
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._writer._get_file_writer().add_summary(summary, step)

    def layout(self, tags: Sequence[str], charts: Charts) -> None:
        """Lay out the page "custom scalars" for a run that logs `tags`; the first call counts.

        Args:
            tags: of the values that a step logs.
            charts: of the stage.
        """
        if self._has_layout:
            return
        self._has_layout = True
        tags = [*tags, *(tag_of(name, "validation") for name in charts.held_out)]
        pages = {
            page: {
                title: ["Multiline", [f"^{pattern}$" for pattern in patterns]]
                for title, patterns in charts.items()
                if any(re.fullmatch(pattern, tag) for pattern in patterns for tag in tags)
            }
            for page, charts in _merged(charts.pages).items()
        }
        self._writer.add_custom_scalars({page: charts for page, charts in pages.items() if charts})

    def picture(self, step: int, tag: str, picture_HWC: NDArray[np.uint8]) -> None:
        """One RGB picture."""
        self._writer.add_image(tag, picture_HWC, step, dataformats="HWC")

    def text(self, step: int, tag: str, markdown: str) -> None:
        """A text, say a table."""
        self._writer.add_text(tag, markdown, step)

    def precision_recall(
        self, step: int, tag: str, labels: NDArray[np.int64], probabilities: NDArray[np.float64]
    ) -> None:
        """The PR curve of n probabilities against n labels (0 or 1)."""
        self._writer.add_pr_curve(tag, labels, probabilities, step)

    def vectors(
        self,
        step: int,
        tag: str,
        vectors_BD: torch.Tensor,
        rows: Sequence[Sequence[str]],
        header: Sequence[str],
        thumbnails: torch.Tensor,
    ) -> None:
        """B vectors for the projector, each with a row of facts and a thumbnail, float [B, 3, side, side] in 0 … 1."""
        clean = [[" ".join(cell.split()) or "-" for cell in row] for row in rows]
        self._writer.add_embedding(vectors_BD, clean, thumbnails, step, tag, list(header))

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def tag_of(name: str, prefix: str) -> str:
    """The tag of a value of metrics.jsonl, say speed/mfu; validation values stand under their prefix."""
    if prefix != "train":
        return f"{prefix}/{name}"
    return f"{next((section for section, names in SECTIONS.items() if name in names), 'train')}/{name}"


def _merged(own: Pages) -> Pages:
    """The common pages, each with a stage's charts behind its first one; then the stage's own pages."""
    pages = {}
    for page, charts in COMMON.items():
        first, *rest = charts.items()
        pages[page] = dict([first, *own.get(page, {}).items(), *rest])
    machine = pages.pop("machine")
    return pages | {page: charts for page, charts in own.items() if page not in COMMON} | {"machine": machine}
