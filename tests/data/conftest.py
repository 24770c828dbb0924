"""A small real catalogue with pairs, built once: some titles and some pictures are missing, some texts overflow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import PreTrainedTokenizerBase

from mbsd.catalog.build.build import BuildOptions, build_catalog
from mbsd.catalog.keys import open_keys
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item
from mbsd.catalog.tables import Table, write_table
from mbsd.config.data import DataConfig
from mbsd.config.deepspeed import BatchSizes
from mbsd.config.stages import MaskingConfig
from mbsd.data.batch_builder import BatchBuilder
from mbsd.data.decode_dali import dali_installed, make_decoder
from mbsd.data.spec import BatchSpec, Labelled, Masked
from mbsd.data.text import build_tokenizer
from mbsd.parallel.world import World

NUM_ITEMS = 41
IMAGE_SIZE = 64
PATCHES = 4

MakeBuilder = Callable[..., BatchBuilder]

needs_dali = pytest.mark.skipif(not dali_installed(), reason="NVIDIA DALI is not installed")
DECODERS = ["torchvision", pytest.param("dali", marks=needs_dali)]


def picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Something like a photo: soft colours with sharp-edged things on them."""
    soft = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(soft).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        draw.ellipse([x, y, x + width // 6, y + height // 8], fill=tuple(rng.integers(0, 255, 3).tolist()))
    # Fine texture, so that resizing without antialias shows.
    grain = rng.integers(-25, 26, (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    words = ["红色", "连衣裙", "女", "summer", "dress", "long-sleeve", "cotton", "2023", "新款", "moonlight"]
    items = []
    for number in range(NUM_ITEMS):
        title = "" if number % 7 == 3 else " ".join(rng.choice(words, size=int(rng.integers(1, 12))))
        name = "" if number % 5 == 2 else f"{number}.jpg"
        if not title and not name:
            name = f"{number}.jpg"
        if name:
            picture(rng, int(rng.integers(70, 130)), int(rng.integers(70, 130))).save(folder / name, quality=90)
        items.append(Item(item_id=f"i{number}", title=title, image=name))
    build_catalog(items, folder, folder / "catalog", BuildOptions(items_per_shard=16, workers=1, progress=False))
    return Catalog(folder / "catalog")


@pytest.fixture(scope="session")
def pairs(catalog: Catalog) -> Table:
    rows = 30
    out = catalog.path.parent / "pairs.parquet"
    columns = {
        "text": [f"query {row % 4} 红色 dress" for row in range(rows)],
        "item": [row * 3 % len(catalog) for row in range(rows)],
        "label": [row % 2 for row in range(rows)],
        "source": ["purchase"] * rows,
        "evidence": [2] * rows,
        "replaced": [""] * rows,
        "split": ["train" if row < 23 else "test" for row in range(rows)],
    }
    write_table("pairs", pa.table(columns), catalog, out)
    return Table(out, catalog)


@pytest.fixture(scope="session")
def tokenizer(catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    texts = [catalog.title(item) for item in range(len(catalog))] + ["query 0 1 2 3"]
    return build_tokenizer(texts, 200, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def make_builder(catalog: Catalog, tokenizer: PreTrainedTokenizerBase) -> MakeBuilder:
    def make(
        views: tuple[str, ...] = ("full",),
        masking: MaskingConfig | Masked | None = None,
        decoder: str = "torchvision",
        train: bool = True,
        label_dtype: torch.dtype | None = None,
        image_cls: bool = False,
        **settings: float,
    ) -> BatchBuilder:
        data = DataConfig(
            str(catalog.path),
            image_size=IMAGE_SIZE,
            max_text_tokens=24,
            max_query_tokens=10,
            **{"num_workers": 0, "prefetch": 2, **settings},  # type: ignore[arg-type]
        )
        targets = Labelled(label_dtype) if label_dtype else masking
        if isinstance(targets, MaskingConfig):
            targets = Masked(targets)
        spec = BatchSpec(views, targets, PATCHES, image_cls, train, seed=3)
        same = spec.same_product
        return BatchBuilder(
            catalog,
            tokenizer,
            data,
            spec,
            make_decoder(decoder, IMAGE_SIZE, max_batch=4),
            None if same is None else open_keys(catalog, same.same, required=False),
        )

    return make


def ranks(size: int) -> list[World]:
    """So many ranks on the CPU, as the loaders see them."""
    return [World(rank, size, rank, torch.device("cpu")) for rank in range(size)]


def sizes(global_batch: int, micro_batch: int, world_size: int = 1) -> BatchSizes:
    """The micro-steps follow."""
    return BatchSizes(global_batch, micro_batch, global_batch // (micro_batch * world_size))


def tensors_of(batch: object) -> dict[str, object]:
    """Every leaf of a Batch by its path; tensors as nested lists, to compare two batches exactly."""
    leaves: dict[str, object] = {}
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            leaves[name] = (value.dtype, tuple(value.shape), value.numpy().tobytes())
        elif hasattr(value, "__dataclass_fields__"):
            leaves |= {f"{name}.{key}": leaf for key, leaf in tensors_of(value).items()}
        else:
            leaves[name] = value
    return leaves
