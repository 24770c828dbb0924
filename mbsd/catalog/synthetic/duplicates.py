"""The same product sold by another shop: another id, the title in other words, the picture in another guise.

What the product is stays: brand, attributes and kind in the title, the garment in the picture.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence

from PIL import Image, ImageEnhance

from mbsd.catalog.synthetic.words import Vocabulary

GUISES = ("same", "quality", "crop", "shift", "brightness")
QUALITY = 85


def origins_of(num_items: int, share: float, seed: int) -> list[int]:
    """Return for each item the number of the one whose product it is: its own, or for the last `share` an earlier one.

    An original may have several duplicates, or none.
    """
    originals = max(1, num_items - round(share * num_items))
    drawn = [random.Random(f"origin\t{seed}\t{k}").randrange(originals) for k in range(originals, num_items)]
    return [*range(originals), *drawn]


def retold(rng: random.Random, words: Sequence[str], vocabulary: Vocabulary) -> tuple[str, ...]:
    """Return a title's words as another shop puts them: in another order, some fillers dropped, up to two added."""
    kept = [word for word in words if not _is_filler(word, vocabulary) or rng.random() < 0.5]
    unused = [word for word in vocabulary.adjectives if word not in kept]
    kept += rng.sample(unused, rng.randint(0, 2))
    rng.shuffle(kept)
    spell = rng.choice((str, str, str.title, str.upper))
    return tuple(map(spell, kept))


def in_another_guise(rng: random.Random, jpeg: bytes) -> bytes:
    """Return a picture as it is, or at another quality, cropped, shifted, or brighter or darker; of the same size."""
    guise = rng.choice(GUISES)
    if guise == "same":
        return jpeg
    image, quality = Image.open(io.BytesIO(jpeg)).convert("RGB"), QUALITY
    width, height = image.size
    if guise == "quality":
        quality = rng.randint(50, 80)
    elif guise == "crop":
        share = rng.uniform(0.85, 0.95)
        left, top = rng.uniform(0, (1 - share) * width), rng.uniform(0, (1 - share) * height)
        image = image.resize(image.size, box=(left, top, left + share * width, top + share * height))
    elif guise == "shift":
        shifted = Image.new("RGB", image.size, image.getpixel((0, 0)))
        shifted.paste(image, (round(rng.uniform(-0.08, 0.08) * width), round(rng.uniform(-0.08, 0.08) * height)))
        image = shifted
    else:
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.85, 1.15))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _is_filler(word: str, vocabulary: Vocabulary) -> bool:
    """Whether a word of a title says nothing that would tell the product: a season with its year, for whom, praise."""
    return word in vocabulary.genders or word in vocabulary.adjectives or word[:2] == "20"
