"""Small pictures that a page holds in itself."""

from __future__ import annotations

import base64
import io

from PIL import Image

from mbsd.catalog.several import Items
from mbsd.io.console import say


def thumbnail_of(catalog: Items, item: int, side: int) -> str:
    """Return an item's picture as a data URI of a JPEG of at most `side` pixels.

    "" where there is no picture, or a damaged one, which is named.
    """
    jpeg = catalog.whole_image(item, say)
    if jpeg is None:
        return ""
    return data_uri(jpeg, side)


def data_uri(picture: bytes, side: int) -> str:
    """Return an encoded picture as a data URI of a JPEG of at most `side` pixels."""
    opened, small = Image.open(io.BytesIO(picture)), io.BytesIO()
    opened.thumbnail((side, side))
    opened.save(small, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(small.getvalue()).decode()
