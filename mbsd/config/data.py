"""Settings: what is read, and how it becomes tokens and pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mbsd.config.catalogs import CatalogConfig, check_catalogs
from mbsd.config.paths import PathText
from mbsd.config.ranges import at_least, share


@dataclass(frozen=True)
class DataConfig:
    """What is read and how it becomes tokens and pixels."""

    catalog: PathText | None = None
    """Folder written by `mbsd catalog build`, or its URL (s3://…, gs://…, https://…); this or catalogs."""
    catalogs: tuple[CatalogConfig, ...] | None = None
    """Several catalogues, each with `path`, `weight` and, where its folder's name will not do, `name`. Of any 10,000
    training samples in a row each has exactly its share, spread evenly; validation reads every held-out sample once."""
    cache: PathText | None = None
    """Of a catalogue at a URL, which needs it: folder on this machine's own disk, for its index, which is fetched once,
    and for shards, which are fetched when they are read. All processes of the machine share it, and so may runs."""
    cache_gb: float = at_least(0, default=20.0)
    """GB that the shards in data.cache may have together; those read the longest ago are removed first. A window of
    shuffle_block times shuffle_window samples should fit, or shards are fetched again and again."""
    table: PathText | None = None
    """Task table over the catalogue (Parquet): pairs for stage 2, the labels for fine-tuning."""
    tokenizer: PathText | None = None
    """Folder or hub name. Default: that of run.init_from, else a WordPiece vocabulary built from the catalogue."""
    image_size: int = at_least(1, default=224)
    """Side in pixels of the square that the model sees."""
    max_text_tokens: int = 144
    """Most tokens of a text, special tokens included; the title is cut first."""
    max_query_tokens: int = 64
    """With [CLS] and [SEP]; a longer query or tag is cut here."""
    drop_incomplete: bool = False
    """Where the catalogue alone is read (stage 1, contrastive): train and validate without the items that have no title
    or no picture."""
    held_out: tuple[PathText, ...] = ()
    """Where the catalogue alone is read: task tables whose validation and test items are not trained on. The
    catalogue's own splits are by item, a table's by group: some of its test items are in the catalogue's train."""
    decoder: Literal["auto", "torchvision", "dali"] = "auto"
    """auto: DALI on a GPU where it is installed, else torchvision."""
    num_workers: int = at_least(0, default=2)
    """Loader processes of each rank; 0 loads in the training process."""
    prefetch: int = at_least(1, default=4)
    """Micro-batches each worker holds ready."""
    crop_scale: tuple[float, float] = (0.8, 1.0)
    """Share of the image's area a training crop keeps; (1, 1): no cropping."""
    flip_probability: float = share(default=0.5)
    """Probability that a training picture is mirrored left to right."""
    colour_jitter: float = share(default=0.0)
    """Training pictures' brightness, contrast and saturation change by up to this share. A colour is often what an
    attribute says, so none by default."""
    word_dropout: float = share(default=0.0)
    """Probability that a word piece of a training title is left out; one always stays. Queries and tags stay whole: in
    stage 2 a query may ask for a word that its title has lost."""
    share_images: bool = False
    """Rows of a task table that ask about the same item show one picture in a rank's micro-batch: cropped once an
    epoch, decoded and patchified once. They come together where an item's rows are neighbours in the table, as in
    derived ones, with shuffle_window 1 and a shuffle_block of several items' rows. Not with token_bucket."""
    shuffle_block: int = at_least(1, default=64)
    """Neighbouring samples that an epoch keeps near each other, so that disks read sequentially."""
    shuffle_window: int = at_least(1, default=512)
    """Blocks that are mixed with each other. A catalogue of no more than a window is shuffled as a whole."""
    token_bucket: int = at_least(1, default=1)
    """Training batches are padded to a multiple of this many tokens, and to an image for every sample, so that
    model.compile sees few shapes; losses stay the same. 1: no padding."""
    max_corrupt: float = share(default=0.001)
    """Pictures whose bytes on disk are damaged are left out and named; the run stops where they are a larger share of
    those read. 0: at the first one."""

    def check(self) -> None:
        """Raise UserError where it does not say which catalogues are read."""
        check_catalogs(self.catalog, self.catalogs)

    @property
    def catalog_paths(self) -> tuple[str, ...]:
        """Of the catalogues that are read."""
        return (str(self.catalog),) if self.catalogs is None else tuple(one.path for one in self.catalogs)

    @property
    def read_from(self) -> str:
        """The catalogues that are read, in words."""
        if self.catalogs is None:
            return str(self.catalog)
        return ", ".join(one.path + (f" ({one.name})" if one.name is not None else "") for one in self.catalogs)
