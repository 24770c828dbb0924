"""A catalogue -> the source of a second one, which has every item and its twin.

A twin is the same product with another crop of its picture and some of its title's words dropped. That is all: unlike
another shop's offer it has no word of its own, and its picture is of the same photo.
"""

from __future__ import annotations

import io
import json
import random
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mbsd.catalog.build.options import BuildOptions
from mbsd.catalog.reader import Catalog
from mbsd.catalog.twins.ids import require_no_twins, twin_id
from mbsd.catalog.word_forms import UNSPACED, forms_of
from mbsd.errors import UserError
from mbsd.io.console import say
from mbsd.io.files import replacing

ITEMS_FILE, IMAGES_FILE, WHERE_FILE = "items.jsonl", "images.tar", "attribute_where.json"
QUALITY = 90
MAX_SIDE = BuildOptions().max_side
# In scripts whose words touch each other two neighbouring characters are a word, as in `mbsd pairs derive`.
_WORD = re.compile(rf"[{UNSPACED}]{{1,2}}|[^\s{UNSPACED}]+")


@dataclass(frozen=True)
class TwinOptions:
    """How a twin differs from its item.

    Attributes:
        seed: another one draws other crops and other words.
        crop: the least and the largest share of the picture's area that is kept.
        drop_words: the probability with which each word of the title is dropped; one always stays.

    Raises:
        UserError: a number is out of range.
    """

    seed: int = 0
    crop: tuple[float, ...] = (0.6, 0.9)
    drop_words: float = 0.3

    def __post_init__(self) -> None:
        if len(self.crop) != 2 or not 0 < self.crop[0] <= self.crop[1] <= 1:
            given = ",".join(f"{share:g}" for share in self.crop)
            raise UserError(
                f"crop is {given}; expected two shares of the picture's area above 0 and up to 1, the smaller first, "
                "such as 0.6,0.9"
            )
        if not 0 <= self.drop_words <= 1:
            raise UserError(f"drop_words is {self.drop_words:g}; expected a probability, from 0 to 1")


@dataclass(frozen=True)
class TwinSummary:
    """What was written.

    Attributes:
        twins: their number, that of the items.
        with_image: twins with a picture.
        shortened: twins whose title lost a word.
        build: the arguments of `mbsd catalog build` that read it, but for the folder of the catalogue.
    """

    twins: int
    with_image: int
    shortened: int
    build: tuple[str, ...]


def make_twins(catalog: Catalog, out: Path, options: TwinOptions | None = None) -> TwinSummary:
    """Write `items.jsonl`, `images.tar` and, where the catalogue knows, `attribute_where.json` below `out`.

    Each item stands before its twin, its picture as it is stored. A twin follows from the seed and its item alone. The
    column `product_id` is the item's id for both. A damaged picture is named and left out, of its twin too.

    Args:
        catalog: one without twins.
        out: a folder that does not exist or is empty.
        options: None = the defaults.

    Raises:
        UserError: `out` is not empty, or an item's id ends as a twin's does.
    """
    options = options or TwinOptions()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already there and not an empty folder; choose another name or remove it")
    require_no_twins(catalog)
    with_image = shortened = 0
    with replacing(out) as beside:
        beside.mkdir(parents=True)
        with (
            (beside / ITEMS_FILE).open("w", encoding="utf-8") as file,
            tarfile.open(beside / IMAGES_FILE, "w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for number in range(len(catalog)):
                record, jpeg = catalog.record(number), catalog.whole_image(number, say)
                title = shortened_title(record.title, record.item_id, options)
                again = None if jpeg is None else cropped(jpeg, record.item_id, options)
                with_image += again is not None
                shortened += title != _spaced(record.title)
                for item_id, text, picture, name in (
                    (record.item_id, record.title, jpeg, f"{number:09d}.jpg"),
                    (twin_id(record.item_id), title, again, f"{number:09d}-twin.jpg"),
                ):
                    row = {
                        "item_id": item_id,
                        "title": text,
                        "category": record.category,
                        "attributes": record.attributes,
                        "image": name if picture is not None else "",
                        "product_id": record.item_id,
                    }
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    if picture is not None:
                        _add(tar, name, picture)
        if catalog.attribute_where:
            text = json.dumps(catalog.attribute_where, ensure_ascii=False, indent=2) + "\n"
            (beside / WHERE_FILE).write_text(text, encoding="utf-8")
    return TwinSummary(len(catalog), with_image, shortened, _build(catalog, out))


def _build(catalog: Catalog, out: Path) -> tuple[str, ...]:
    """Pictures stay as they are with the sides that they have now."""
    arguments = [str(out / ITEMS_FILE), "--images", str(out / IMAGES_FILE)]
    if catalog.attribute_where:
        arguments += ["--attribute-where", str(out / WHERE_FILE)]
    if (side := catalog.meta["options"]["max_side"]) != MAX_SIDE:
        arguments += ["--max-side", str(side)]
    return tuple(arguments)


def shortened_title(title: str, item_id: str, options: TwinOptions) -> str:
    """Return the title of an item's twin: each word is dropped with the same probability, and one always stays.

    A word is what stands between spaces; in scripts without spaces, two neighbouring characters. Where such a word is
    dropped a space stands for it, so that its neighbours do not become another word.
    """
    words = list(_WORD.finditer(title))
    if not words:
        return _spaced(title)
    rng = random.Random(f"twin title\t{options.seed}\t{item_id}")
    kept = [rng.random() >= options.drop_words for _ in words]
    telling = [place for place, word in enumerate(words) if forms_of(word.group())] or range(len(words))
    stays = rng.choice(telling)  # a dash alone would be no title
    if not any(kept[place] for place in telling):
        kept[stays] = True
    text = list(title)
    for word, stay in zip(words, kept, strict=True):
        if not stay:
            text[word.start() : word.end()] = " " * (word.end() - word.start())
    return _spaced("".join(text))


def cropped(jpeg: bytes, item_id: str, options: TwinOptions) -> bytes:
    """Return the picture of an item's twin: a part of it of the same shape, from anywhere, encoded again."""
    rng = random.Random(f"twin picture\t{options.seed}\t{item_id}")
    share = rng.uniform(*options.crop) ** 0.5
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    width, height = (max(1, round(side * share)) for side in image.size)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    buffer = io.BytesIO()
    image.crop((left, top, left + width, top + height)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _spaced(title: str) -> str:
    return " ".join(title.split())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
