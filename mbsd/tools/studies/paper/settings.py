"""Settings of `launchers/paper.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mbsd.config.paths import PathText
from mbsd.config.ranges import at_least, check_ranges
from mbsd.errors import UserError
from mbsd.tools.studies.shop import ShopConfig


@dataclass(frozen=True)
class Scale:
    """The files of a scale, in launchers/configs, and the options that they are given.

    Attributes:
        ablation, missing: Table 6 and Fig. 7; runs are shared where both fine-tune alike.
        batches, steps, seconds: of `mbsd bench latency`.
    """

    compare: str
    ablation: tuple[str, ...]
    missing: tuple[str, ...]
    batches: tuple[int, ...]
    steps: int
    seconds: float


SCALES = {
    "small": Scale(
        compare="compare_small.yaml",
        ablation=("photos_ablation.yaml", "--rows=1-8", "--withheld=false"),
        missing=("photos_missing.yaml", "--rows=1,6", "--withheld=false"),
        batches=(1, 8, 64),
        steps=20,
        seconds=5.0,
    ),
    "paper": Scale(
        compare="compare.yaml",
        ablation=("ablation.yaml",),
        missing=("missing.yaml",),
        batches=(1, 2, 4, 8, 16, 32, 64),
        steps=128,
        seconds=60.0,
    ),
}


@dataclass(frozen=True)
class PaperConfig:
    """`launchers/paper.py`: Tables 1, 4, 5 and 6, Fig. 7 and Fig. 8, and one page of them."""

    out: PathText
    """Folder of everything that is made. What is unfinished in it is resumed."""
    scale: Literal["small", "paper"] = "small"
    """small: models that CPU cores can train; paper: the paper's sizes and grid, on 8 H100."""
    catalog: PathText | None = None
    """A catalogue of your own; tables are derived from it, pairs from its titles. Default: a synthetic shop."""
    alignment: PathText | None = None
    """Of your own catalogue: a table by `mbsd tables build alignment`, or `mbsd tables derive alignment` where it has
    twins. Without it there is no Table 4."""
    shop: ShopConfig = field(default_factory=ShopConfig)
    """The synthetic shop, where no catalogue is named."""
    min_items: int = at_least(1, default=20)
    """Categories with fewer items are left out of Table 5."""
    compare: PathText | None = None
    """YAML of `launchers/compare.py` in place of the scale's."""
    ablation: PathText | None = None
    """YAML of `launchers/ablation.py` in place of the scale's."""
    missing: PathText | None = None
    """YAML of `launchers/missing.py` in place of the scale's."""
    latency_models: tuple[str, ...] = ()
    """Of `mbsd bench latency`; default: all."""
    latency_batches: tuple[int, ...] | None = None
    """Of `mbsd bench latency`; default: the scale's."""

    def check(self) -> None:
        """Raise UserError where the settings contradict each other."""
        check_ranges(self)
        if self.alignment is not None and self.catalog is None:
            raise UserError(f"alignment={self.alignment}: is a table of a catalogue, and none is named; set catalog")
