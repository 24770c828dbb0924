"""Settings of what is done with a trained model: `launchers/evaluate.py` and `launchers/embed.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mbsd.config.data import DataConfig
from mbsd.config.paths import PathText
from mbsd.config.ranges import at_least, check_ranges
from mbsd.errors import UserError

View = Literal["full", "text", "image"]
VectorView = Literal["full", "text", "image", "mean"]


@dataclass(frozen=True)
class MissingConfig:
    """Titles or pictures that are taken away at random (Fig. 7), on top of those the catalogue lacks."""

    rates: tuple[float, ...] = ()
    """Shares of the samples that lose something, each scored by itself in the view full (of vectors, mean too), such as
    [0.3, 0.5, 0.7]. What is lost at one rate is lost at every higher rate too, on any number of ranks."""
    modality: Literal["title", "image", "either"] = "either"
    """What they lose; either: a title or a picture, equally often."""
    seed: int = 0
    """Of the draw."""


@dataclass(frozen=True)
class ClusteringConfig:
    """Similar-product clustering: how the vectors are grouped."""

    method: Literal["kmeans", "hdbscan"] = "kmeans"
    """How the vectors are grouped."""
    clusters: int | None = at_least(2, default=None)
    """Of k-means; default: as many as categories occur."""
    min_cluster_size: int = at_least(2, default=5)
    """Of HDBSCAN."""
    seed: int = 0
    """Of k-means."""


@dataclass(frozen=True)
class RetrievalConfig:
    """Finding an item's picture by its title, the other way round, and others of its product."""

    pool: Literal["split", "catalogue"] = "split"
    """Among which items the split's are to be found: those of the split, or all of the catalogue."""
    same: tuple[Literal["product", "title", "picture", "near_picture"], ...] = ("product", "title", "picture")
    """Kinds of keys by which two items are the same product (`mbsd catalog keys`); those that the catalogue lacks are
    left out."""


@dataclass(frozen=True)
class NamesConfig:
    """How a category or tag becomes a text that is compared with items; nothing is trained."""

    templates: tuple[str, ...] = ("{}",)
    """Sentences with the name at "{}", such as "a photo of {}"; its vector is the mean over all of them."""
    show: Literal["leaf", "path"] = "leaf"
    """Of a category such as Apparel > Topwear > Shirts: its last name, or all of them."""


@dataclass(frozen=True)
class NeighboursConfig:
    """Classification by the nearest training rows."""

    k: tuple[int, ...] = (1, 5, 20)
    """Numbers of neighbours that vote, each by itself."""


@dataclass(frozen=True)
class ProbeConfig:
    """Logistic regression on frozen vectors."""

    penalties: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1000.0)
    """Inverse strengths (scikit-learn's C); the one that is right most often on validation is taken."""


@dataclass(frozen=True)
class EvaluateConfig:
    """`launchers/evaluate.py`."""

    model: PathText
    """A run folder (its best checkpoint, or its newest where none is best), one of its checkpoints, or a folder written
    by save_pretrained."""
    data: DataConfig
    out: PathText
    """JSON file for the metrics. Every row's answers go to a Parquet file of the same name beside it."""
    task: (
        Literal[
            "attributes", "alignment", "classification", "sensitive", "clustering", "retrieval", "zero_shot",
            "neighbours", "probe", "matching",
        ]
        | None
    ) = None  # fmt: skip
    """Default: the task the model was fine-tuned for. clustering, retrieval, zero_shot, neighbours, probe and matching
    measure the vectors of a model as it is, above all of one of the contrastive stage; of such a model so do attributes
    and sensitive. retrieval reads no table."""
    split: Literal["train", "validation", "test"] = "test"
    """Rows of the table that are scored."""
    views: tuple[VectorView, ...] | None = None
    """What the model sees of each row; every view is scored by itself. Default: full, text and image; of vectors, mean
    too: the direction of the sum of the vectors of title and picture."""
    vector: Literal["auto", "h", "mean", "contrastive"] = "auto"
    """Which vectors are measured, as of `launchers/embed.py`."""
    missing: MissingConfig = field(default_factory=MissingConfig)
    clustering: ClusteringConfig = field(default_factory=ClusteringConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    names: NamesConfig = field(default_factory=NamesConfig)
    neighbours: NeighboursConfig = field(default_factory=NeighboursConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    positive: str | None = None
    """Of sensitive without training, which needs it: the category to find. A fine-tuned model knows its own."""
    recalls: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.99)
    """Of sensitive and matching: the precision at each of these recalls is reported, with the threshold that gives
    it."""
    max_samples: int | None = at_least(1, default=None)
    """At most this many rows, drawn at random with a fixed seed; default: all of them."""
    bootstrap: int = at_least(0, default=1000)
    """Resamples of the rows behind each 95 % interval; fewer, but no fewer than 100, above ten thousand rows. 0: no
    intervals."""
    bootstrap_seed: int = 0
    """Of the resamples."""
    micro_batch: int = at_least(1, default=64)
    """Samples a rank scores at once."""

    def check(self) -> None:
        """Raise UserError if the settings contradict each other."""
        self.data.check()
        if self.data.table is None and self.task != "retrieval":
            raise UserError("data.table is not set: evaluation needs a task table")
        if self.data.table is not None and self.task == "retrieval":
            raise UserError(f"data.table={self.data.table}: task=retrieval reads the catalogue alone: remove it")
        _refuse_leaving_out(self.data)
        if not self.out.endswith(".json"):
            raise UserError(f"out={self.out}: expected a name that ends in .json; the answers go beside it as .parquet")
        check_ranges(self)
        for name, shares in (("missing.rates", self.missing.rates), ("recalls", self.recalls)):
            if not all(0 < share <= 1 for share in shares) or len(set(shares)) < len(shares):
                raise UserError(f"{name}={list(shares)}: expected different numbers above 0, up to 1")
        if self.views == () and not self.missing.rates:
            raise UserError("views and missing.rates are both empty: nothing would be scored")
        if len(set(self.views or ())) < len(self.views or ()):
            raise UserError(f"views={list(self.views or ())}: names a view twice")
        self._check_vectors()

    def _check_vectors(self) -> None:
        """Of what is measured on vectors."""
        counts = {"neighbours.k": self.neighbours.k, "probe.penalties": self.probe.penalties}
        for name, numbers in counts.items():
            if not numbers or not all(number > 0 for number in numbers) or len(set(numbers)) < len(numbers):
                raise UserError(f"{name}={list(numbers)}: expected different numbers above 0")
        if not self.names.templates or not all("{}" in template for template in self.names.templates):
            raise UserError(
                f"names.templates={list(self.names.templates)}: expected texts with {{}} where the name goes"
            )


@dataclass(frozen=True)
class EmbedConfig:
    """`launchers/embed.py`."""

    model: PathText
    """As of `launchers/evaluate.py`; pre-trained or fine-tuned."""
    data: DataConfig
    """Its table is not read."""
    out: PathText
    """Folder for vectors/part-000000.parquet … and manifest.json. An unfinished one is resumed."""
    view: View | None = None
    """What the model sees of each item, where one vector an item is written. Default, without views: full."""
    views: tuple[VectorView, ...] = ()
    """Several vectors an item, from one forward, each in a column of its own: vector_text, …; null for an item that
    shows nothing in that view. mean: the direction of the sum of the unit vectors of title and picture; of the one
    alone where the other is missing. Default for contrastive vectors, without view: text, image and mean."""
    split: Literal["train", "validation", "test"] | None = None
    """Default: all items."""
    vector: Literal["auto", "h", "mean", "contrastive"] = "auto"
    """h: the representation that stage 2 and the tasks train; mean: of the last layer's tokens; contrastive: the unit
    vectors of the contrastive stage, in which titles and pictures compare (of the view full, which has none, h); auto:
    mean for a model of stage 1 without masking.cross_modal, which trains no h, contrastive for one of the contrastive
    stage, else h."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the vectors in the files."""
    items_per_file: int = at_least(1, default=65536)
    """A multiple of micro_batch. A kill costs each rank at most the file it was at."""
    micro_batch: int = at_least(1, default=64)
    """Items a rank encodes at once."""

    def check(self) -> None:
        """Raise UserError if the settings contradict each other."""
        self.data.check()
        if self.data.table is not None:
            raise UserError(f"data.table={self.data.table}: embedding reads the catalogue alone: remove it")
        _refuse_leaving_out(self.data)
        check_ranges(self)
        if self.view is not None and self.views:
            raise UserError(f"view={self.view} and views={list(self.views)}: set one of them")
        if len(set(self.views)) < len(self.views):
            raise UserError(f"views={list(self.views)}: names a view twice")
        if self.items_per_file % self.micro_batch:
            raise UserError(
                f"items_per_file={self.items_per_file}: expected a multiple of micro_batch={self.micro_batch}"
            )


def _refuse_leaving_out(data: DataConfig) -> None:
    if data.drop_incomplete:
        raise UserError("data.drop_incomplete=true: it is a setting of training, and here every item counts: remove it")
    if data.held_out:
        raise UserError(f"data.held_out={list(data.held_out)}: it is a setting of training; remove it")
