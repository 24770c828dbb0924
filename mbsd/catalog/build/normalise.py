"""A picture file as shops have them -> an upright, bounded, baseline RGB JPEG that decodes, or a reason why not.

Nothing is decoded before the header's size has been checked, and only Pillow's decoders for common picture formats
are ever tried: a catalogue is full of files that are not what their names promise.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 64_000_000
STRIP_PIXELS = 4_000_000
EXIF_ORIENTATION = 0x0112
BASELINE = 0xC0
LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageRejected(Exception):  # noqa: N818  (a verdict on a picture, not a failure of the program)
    """A picture that cannot be used; the message is the reason in words."""


@dataclass(frozen=True)
class NormalisedImage:
    """A baseline RGB JPEG, its size in pixels, and 16 bytes that only equal JPEGs share."""

    jpeg: bytes
    width: int
    height: int
    digest: bytes


def normalise_image(
    data: bytes, max_side: int = 320, quality: int = 92, max_pixels: int = MAX_PIXELS
) -> NormalisedImage:
    """Decode `data` fully and return it upright (EXIF), first frame, RGB over white, long side <= `max_side` pixels.

    A picture that already is all of that keeps its own bytes, so that it loses no quality. Greys deeper than 8 bits are
    scaled, a CMYK JPEG without Adobe's marker is taken as not inverted, colour profiles are not applied.

    Raises:
        ImageRejected: the bytes are not a picture, are cut short, or declare more than `max_pixels` pixels.
    """
    if not data:
        raise ImageRejected("an empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of oddities that the checks below decide on
            jpeg, width, height = _normalise(data, max_side, quality, max_pixels)
    except ImageRejected:
        raise
    except UnidentifiedImageError:
        raise ImageRejected(_what_it_is(data)) from None
    except Image.DecompressionBombError:
        raise ImageRejected(f"too large: more than {max_pixels} pixels") from None
    except MemoryError:
        raise ImageRejected("too large to decode in the memory there is") from None
    except Exception as error:  # hostile bytes raise nearly anything inside a decoder
        raise ImageRejected(f"cannot be decoded ({type(error).__name__}: {error})") from None
    return NormalisedImage(jpeg, width, height, hashlib.blake2b(jpeg, digest_size=16).digest())


def _normalise(data: bytes, max_side: int, quality: int, max_pixels: int) -> tuple[bytes, int, int]:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageRejected(f"too large: {width} x {height} pixels, the limit is {max_pixels}")
    fits = max(width, height) <= max_side
    process, _ = _jpeg_process(data) if image.format == "JPEG" else (0, 8)
    if process and process not in LOSSLESS and not fits:
        # The decoder may shrink by a power of two on the way; twice the target leaves the resampling filter its work.
        image.draft(None, (2 * max_side, 2 * max_side))
    image.load()
    turn = TURNS.get(_orientation(image))
    small_file = len(data) <= 3 * width * height + 65536  # nothing large hides behind the picture's end
    if process == BASELINE and image.mode == "RGB" and turn is None and fits and small_file:
        return data, width, height
    if image.format == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info:
        # Pillow takes every CMYK JPEG as inverted; only those with Adobe's marker are.
        image = ImageChops.invert(image)  # type: ignore[assignment]
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


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 … 8, read after decoding: Pillow turns a TIFF itself and then sets 1."""
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # unreadable EXIF is no fault of the picture, which did decode
        return 1


def _jpeg_process(data: bytes) -> tuple[int, int]:
    """Return the code of a JPEG's frame marker, which is its coding process (0xC0 = baseline), and its bits a sample.

    ITU-T T.81, table B.1; (0, 8) where there is no frame marker.
    """
    position = 2
    while position + 5 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker, data[position + 4]
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return 0, 8


def _what_it_is(data: bytes) -> str:
    """Return in words why Pillow cannot identify this file, for the cases that shops have."""
    start = data[:512].lstrip().lower()
    if data.startswith(b"\xff\xd8\xff"):
        process, bits = _jpeg_process(data)
        if bits != 8:
            return f"a JPEG of {bits} bits a sample; only 8 are read"
        return "a JPEG that no decoder here reads" if process else "a JPEG without a picture in it"
    if start.startswith(b"version https://git-lfs"):
        return "not a picture but a git-LFS pointer; fetch the file with `git lfs pull`"
    if start.startswith((b"<!doctype html", b"<html")):
        return "not a picture but a web page"
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
