"""The loader that one writes by hand: a Dataset that opens picture files with Pillow, and the collator of transformers.

It does what such a loader usually does for stage 1: a random crop and a flip, a normalised float picture, the title's
tokens padded to the longest, masked words. No packing, no masked patches, no order that can be resumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from mbsd.catalog.reader import Catalog

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class PlainDataset(Dataset[dict[str, Any]]):
    """A sample for each picture file: `image`, float [3, size, size], and the tokens of its title.

    Args:
        files, titles: one of each for every sample.
        size: pixels of a side.
        max_tokens: at which titles are cut.
    """

    def __init__(
        self, files: list[Path], titles: list[str], tokenizer: PreTrainedTokenizerBase, size: int, max_tokens: int
    ) -> None:
        self.files, self.titles, self.tokenizer, self.max_tokens = files, titles, tokenizer, max_tokens
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=(0.8, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.transform(Image.open(self.files[index]).convert("RGB"))
        return {"image": image, **self.tokenizer(self.titles[index], truncation=True, max_length=self.max_tokens)}


class _Collate:
    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.words = DataCollatorForLanguageModeling(tokenizer)

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        images = torch.stack([sample.pop("image") for sample in samples])
        return {"images": images, **self.words(samples)}


def plain_batches(dataset: PlainDataset, batch: int, num_workers: int) -> Iterator[dict[str, Tensor]]:
    """Shuffled batches without end: `images` float [batch, 3, size, size], and the collator's padded, masked words."""
    while True:
        yield from DataLoader(
            dataset, batch_size=batch, shuffle=True, drop_last=True, num_workers=num_workers,
            collate_fn=_Collate(dataset.tokenizer),
        )  # fmt: skip


def write_files(catalog: Catalog, items: list[int], folder: Path) -> list[Path]:
    """Write the items' pictures, the catalogue's bytes unchanged, and return their paths in the order of `items`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for item in items:
        data = catalog.image(item)
        assert data is not None
        files.append(folder / f"{item:09d}.jpg")
        files[-1].write_bytes(data)
    return files
