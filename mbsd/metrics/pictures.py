"""Pictures for TensorBoard: what stage 1 rebuilds, and product cards with what each view thinks of a pair."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import font_manager, get_data_path
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CARD, PICTURE, LINE = (460, 200), 160, 18  # pixels
INK, PAPER, RIGHT, WRONG, TRACK = "#1f2933", "#ffffff", "#2f9e60", "#c4473a", "#e4e7eb"
# Words in the file names of fonts that hold Chinese.
CHINESE = ("cjk", "wqy", "wenquan", "droidsansfallback", "simhei", "msyh", "pingfang", "heiti", "unifont")


@dataclass(frozen=True)
class Card:
    """A held-out sample and a model's answer.

    Attributes:
        picture: uint8 [h, w, 3]; None where the item has none.
        probabilities: view -> probability of 1.
    """

    query: str
    title: str
    label: int
    picture: NDArray[np.uint8] | None
    probabilities: Mapping[str, float]


def draw_card(card: Card) -> NDArray[np.uint8]:
    """Return the card as a picture, uint8 [h, w, 3]: green bars where a view is right, red where it is wrong."""
    image = Image.new("RGB", CARD, PAPER)
    draw, font = ImageDraw.Draw(image), _font(13)
    if card.picture is not None:
        image.paste(Image.fromarray(card.picture).resize((PICTURE, PICTURE)), (12, 20))
    else:
        draw.rectangle((12, 20, 12 + PICTURE, 20 + PICTURE), outline=TRACK)
        draw.text((52, 92), "no picture", fill=INK, font=font)
    left, top = 24 + PICTURE, 18
    for text in [*_lines(f"“{card.query}”" if card.query else "", 1), *_lines(card.title, 2)]:
        draw.text((left, top), text, fill=INK, font=font)
        top += LINE
    draw.text((left, top), f"label {card.label}", fill=INK, font=font)
    for n, (view, probability) in enumerate(card.probabilities.items()):
        y = 20 + PICTURE - 24 * (len(card.probabilities) - n)
        draw.text((left, y), f"{view:<6}", fill=INK, font=font)
        bar = (left + 50, y + 2, left + 50 + 150, y + 16)
        draw.rectangle(bar, fill=TRACK)
        colour = RIGHT if (probability > 0.5) == (card.label == 1) else WRONG
        draw.rectangle((bar[0], bar[1], bar[0] + round(150 * probability), bar[3]), fill=colour)
        draw.text((bar[2] + 8, y), f"{probability:.3f}", fill=INK, font=font)
    return np.asarray(image)


def cards_table(cards: Sequence[Card]) -> str:
    """Return the same as a table in markdown, in any script and with the probabilities' digits."""
    views = list(cards[0].probabilities)
    lines = ["| | query | title | label | " + " | ".join(f"p {view}" for view in views) + " |"]
    lines.append("|---" * (4 + len(views)) + "|")
    for n, card in enumerate(cards):
        texts = (" ".join(text.replace("|", "/").split()) for text in (card.query, card.title))
        numbers = " | ".join(f"{card.probabilities[view]:.6f}" for view in views)
        lines.append(f"| {n} | {' | '.join(texts)} | {card.label} | {numbers} |")
    return "\n".join(lines)


def grid(rows: Sequence[Sequence[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """Return pictures of one size, uint8 [h, w, 3] each, laid out in rows with a white line between them."""
    height, width, _ = rows[0][0].shape
    sheet = np.full((len(rows) * (height + 4) - 4, len(rows[0]) * (width + 4) - 4, 3), 255, dtype=np.uint8)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            sheet[r * (height + 4) :, c * (width + 4) :][:height, :width] = picture
    return sheet


def _lines(text: str, most: int) -> list[str]:
    """At most so many lines; a Chinese character is as wide as two Latin ones."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text) * 2 > len(text)
    lines = textwrap.wrap(text, 19 if wide else 36)
    return lines[:most] if len(lines) <= most else [*lines[: most - 1], lines[most - 1][:-1] + "…"]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """One that holds Chinese, where this machine has any; else matplotlib's own, which draws boxes for it."""
    found = sorted(path for path in font_manager.findSystemFonts() if any(word in path.lower() for word in CHINESE))
    regular = [path for path in found if "regular" in path.lower() and "serif" not in path.lower()]
    own = str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
    return ImageFont.truetype((regular + found + [own])[0], size)
