"""Small pictures, item files and catalogues for the tests of this folder."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from mbsd.catalog.build.build import BuildOptions, build_catalog
from mbsd.catalog.reader import Catalog
from mbsd.catalog.sources import Item


def picture(colour: Any = (200, 30, 40), size: tuple[int, int] = (40, 30), mode: str = "RGB", **save: Any) -> bytes:
    """The bytes of a one-coloured picture; JPEG unless `format` is given."""
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, **{"format": "JPEG", "quality": 95, **save})
    return buffer.getvalue()


def pixels(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def near(found: Any, expected: tuple[int, int, int], tolerance: int = 6) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(found, expected, strict=True))


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
    return path


def write_jsonl(path: Path, *records: dict[str, Any]) -> Path:
    return write_lines(path, *(json.dumps(record, ensure_ascii=False) for record in records))


def colour_of(number: int) -> tuple[int, int, int]:
    return (number * 37 % 256, number * 91 % 256, number * 151 % 256)


def image_folder(folder: Path, count: int) -> Path:
    """`count` pictures 000.jpg … in distinct colours and sizes."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03d}.jpg").write_bytes(picture(colour_of(number), (24 + number % 5, 20)))
    return folder


def items_of(count: int) -> list[Item]:
    shapes, shades = ("round", "square", "flat"), ("red", "blue", "green", "black")
    return [
        Item(f"id-{n}", f"title {n}", f"{n:03d}.jpg", f"kind {n % 2}", {"shape": shapes[n % 3], "shade": shades[n % 4]})
        for n in range(count)
    ]


def small_catalog(folder: Path, items: list[Item], images: Path | None = None, **options: Any) -> Catalog:
    """Build a catalogue with one worker and any number of rejects, and open it."""
    build_catalog(items, images, folder, BuildOptions(workers=1, progress=False, **{"max_rejects": 1.0, **options}))
    return Catalog(folder)


def quarantine(catalog: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (catalog / "quarantine.jsonl").read_text("utf-8").splitlines()]
