"""Any picture a shop has -> an upright, bounded, baseline RGB JPEG that is known to decode, or a reason why not.

Nothing is decoded before the header's size has been checked, and only Pillow's decoders for common picture formats
are ever tried: a catalogue is full of files that are not what their name says.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 64_000_000
EXIF_ORIENTATION = 0x0112


class ImageRejected(Exception):  # noqa: N818  (a verdict on a picture, not a failure of the program)
    """A picture that cannot be used; the message is the reason in words."""


@dataclass(frozen=True)
class NormalisedImage:
    """A baseline RGB JPEG and its size in pixels."""

    jpeg: bytes
    width: int
    height: int


def normalise_image(
    data: bytes, max_side: int = 320, quality: int = 92, max_pixels: int = MAX_PIXELS
) -> NormalisedImage:
    """Decode `data` fully and return it upright (EXIF), first frame, RGB over white, long side <= `max_side` pixels.

    A picture that already is all of that keeps its own bytes, so that it loses no quality.

    Raises:
        ImageRejected: the bytes are not a picture, are cut short, or declare more than `max_pixels` pixels.
    """
    if not data:
        raise ImageRejected("an empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of oddities that the checks below decide on
            return _normalise(data, max_side, quality, max_pixels)
    except ImageRejected:
        raise
    except UnidentifiedImageError:
        raise ImageRejected(f"not a picture in a known format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise ImageRejected(f"too large: more than {max_pixels} pixels") from None
    except MemoryError:
        raise ImageRejected("too large to decode in the memory there is") from None
    except Exception as error:  # hostile bytes raise nearly anything inside a decoder
        raise ImageRejected(f"cannot be decoded ({type(error).__name__}: {error})") from None


def _normalise(data: bytes, max_side: int, quality: int, max_pixels: int) -> NormalisedImage:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageRejected(f"too large: {width} x {height} pixels, the limit is {max_pixels}")
    fits = max(width, height) <= max_side
    if image.format == "JPEG" and not fits:
        # The decoder may shrink by a power of two on the way; twice the target leaves the resampling filter its work.
        image.draft(None, (2 * max_side, 2 * max_side))
    image.load()
    upright = image.getexif().get(EXIF_ORIENTATION, 1) in (0, 1)
    if image.format == "JPEG" and image.mode == "RGB" and upright and fits and "progressive" not in image.info:
        return NormalisedImage(data, width, height)
    pixels = _rgb(image if upright else ImageOps.exif_transpose(image))
    if max(pixels.size) > max_side:
        scale = max_side / max(pixels.size)
        size = (max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale)))
        pixels = pixels.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    # A bare RGB copy: no EXIF, profile or comment of the source travels along.
    Image.frombytes("RGB", pixels.size, pixels.tobytes()).save(buffer, "JPEG", quality=quality, progressive=False)
    return NormalisedImage(buffer.getvalue(), pixels.width, pixels.height)


def _rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB; transparent parts lie over white, as a shop's page shows them."""
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow clips deep greys to 8 bits; scale them instead. Integers are 16 bits deep in the formats read here.
        values = np.asarray(image, dtype=np.float64)
        scaled = values * 255.0 if image.mode == "F" and values.max(initial=0.0) <= 1.0 else values
        scaled = scaled if image.mode == "F" else scaled / 257.0
        return Image.fromarray(np.clip(np.nan_to_num(scaled), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
