"""A picture file as shops have them -> an upright, bounded, baseline RGB JPEG that decodes, or a reason why not.

Nothing is decoded before the header's size has been checked: a catalogue is full of files that are not what their names
promise.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, UnidentifiedImageError

from mbsd.catalog.build.open_image import (
    BASELINE,
    FORMATS,
    HIDDEN_MEMORY,
    ImageRejected,
    beginning,
    jpeg_frame,
    open_image,
)

MAX_PIXELS = 64_000_000
STRIP_PIXELS = 4_000_000
EXIF_ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class NormalisedImage:
    """A baseline RGB JPEG, its size in pixels, and 16 bytes that only equal JPEGs share."""

    jpeg: bytes
    width: int
    height: int
    digest: bytes


def normalise_image(
    data: bytes,
    max_side: int = 320,
    quality: int = 92,
    max_pixels: int = MAX_PIXELS,
    max_memory: int | None = None,
) -> NormalisedImage:
    """Decode `data` fully and return it upright (EXIF), first frame, RGB over white, long side <= `max_side` pixels.

    A picture that already is all of that keeps its own bytes, so that it loses no quality. Greys deeper than 8 bits are
    scaled, a CMYK JPEG without Adobe's marker is taken as not inverted, colour profiles are not applied.

    Args:
        max_pixels: that may be decoded; a larger JPEG or JPEG 2000 is decoded reduced.
        max_memory: bytes that the caller lets this process take; None: it sets no limit.

    Raises:
        ImageRejected: the bytes are not a picture, are cut short, or would be decoded to more than `max_pixels` pixels
            or in more than `max_memory` bytes.
    """
    if not data:
        raise ImageRejected("an empty file")
    image, size = None, (0, 0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of oddities that the checks below decide on
            image = open_image(data, max_side, max_pixels, max_memory)
            size = image.size
            jpeg, width, height = _normalise(image, data, max_side, quality)
    except ImageRejected:
        raise
    except UnidentifiedImageError:
        raise ImageRejected(_what_it_is(data)) from None
    except Image.DecompressionBombError:
        raise ImageRejected(f"too large: more than {max_pixels} pixels") from None
    except MemoryError:
        raise ImageRejected("too large to decode in the memory there is") from None
    except Exception as error:  # hostile bytes raise nearly anything inside a decoder
        why = f"cannot be decoded ({type(error).__name__}: {' '.join(str(error).split())})"
        if image is not None and _hides_memory(image.format, size, max_memory):
            why = f"{why}: broken, or {size[0]} x {size[1]} pixels are too large for the memory there is"
        raise ImageRejected(why) from None
    return NormalisedImage(jpeg, width, height, hashlib.blake2b(jpeg, digest_size=16).digest())


def _normalise(image: Image.Image, data: bytes, max_side: int, quality: int) -> tuple[bytes, int, int]:
    frame = jpeg_frame(data) if image.format == "JPEG" else None
    fits = max(image.size) <= max_side  # of a picture that is decoded reduced: more than that is left of it
    width, height = image.size
    image.load()
    turn = TURNS.get(_orientation(image))
    small_file = len(data) <= 3 * width * height + 65536  # nothing large hides behind the picture's end
    if frame and frame.process == BASELINE and image.mode == "RGB" and turn is None and fits and small_file:
        return data, width, height
    if image.format == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info:
        # Pillow takes every CMYK JPEG as inverted; only those with Adobe's marker are.
        image = ImageChops.invert(image)
    pixels = _small_rgb(image, max_side)
    if max(pixels.size) > max_side:
        scale = max_side / max(pixels.size)
        size = (max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale)))
        pixels = pixels.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    if turn is not None:
        pixels = pixels.transpose(turn)
    buffer = io.BytesIO()
    # A bare RGB copy: no EXIF, profile or comment of the source travels along.
    Image.frombytes("RGB", pixels.size, pixels.tobytes()).save(buffer, "JPEG", quality=quality, progressive=False)
    return buffer.getvalue(), pixels.width, pixels.height


def _hides_memory(format: str | None, size: tuple[int, int], max_memory: int | None) -> bool:
    """Whether a decoder may have failed for want of memory without a word about it."""
    return max_memory is not None and size[0] * size[1] * HIDDEN_MEMORY.get(format or "", 0) > max_memory


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 … 8, read after decoding: Pillow turns a TIFF itself and then sets 1."""
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # unreadable EXIF is no fault of the picture, which did decode
        return 1


def _what_it_is(data: bytes) -> str:
    """Return in words why Pillow cannot identify this file, for the cases that shops have."""
    start = data[:512].lstrip().lower()
    if data.startswith(b"\xff\xd8\xff"):
        frame = jpeg_frame(data)
        if frame is None:
            return "a JPEG without a picture in it"
        if frame.bits != 8:
            return f"a JPEG of {frame.bits} bits a sample; only 8 are read"
        return "a JPEG that no decoder here reads"
    if start.startswith(b"version https://git-lfs"):
        return "not a picture but a git-LFS pointer; fetch the file with `git lfs pull`"
    if start.startswith((b"<!doctype html", b"<html")):
        return "not a picture but a web page"
    begins_as = beginning(data)
    if begins_as:
        return f"begins as {begins_as}, but is cut short or of a kind that is not read"
    return f"not a picture in a known format ({', '.join(FORMATS)})"


def _small_rgb(image: Image.Image, max_side: int) -> Image.Image:
    """Any picture as RGB, a very large one reduced to no less than twice `max_side`, strip by strip to spare memory."""
    factor = max(image.size) // (2 * max_side)
    if image.width * image.height <= STRIP_PIXELS or factor < 2:
        return _rgb(image, _white(image))
    white = _white(image)
    rows = max(1, STRIP_PIXELS // (image.width * factor)) * factor
    small = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        small.paste(_rgb(strip, white).reduce(factor), (0, top // factor))
    return small


def _white(image: Image.Image) -> float:
    """The value that becomes 255 in a picture of deep greys: integers are 16 bits deep in the formats read here."""
    if image.mode == "F":
        highest = np.asarray(image.getextrema(), dtype=np.float64)[1]
        return 1.0 if highest <= 1.0 else 255.0
    return 65535.0


def _rgb(image: Image.Image, white: float) -> Image.Image:
    """Any Pillow mode as RGB; transparent parts lie over white, as a shop's page shows them."""
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow clips deep greys to 8 bits; scale them instead.
        values = np.asarray(image, dtype=np.float32) * np.float32(255.0 / white)
        return Image.fromarray(np.clip(np.nan_to_num(values), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        backdrop = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(backdrop, rgba).convert("RGB")
    return image.convert("RGB")
