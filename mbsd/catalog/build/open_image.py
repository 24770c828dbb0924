"""The bytes of a picture file -> an opened picture that will be decoded within bounds, reduced where its format can.

Only the decoders of common picture formats are ever tried, and nothing is decoded here: sizes come from headers.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import AvifImagePlugin, Image, Jpeg2KImagePlugin, JpegImagePlugin
from pillow_heif import options as heif_options
from pillow_heif import register_heif_opener

# AVIF before HEIF: both begin alike, and Pillow's AVIF decoder leaves what it does not know to the next.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM")
BASELINE = 0xC0
LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
COEFFICIENTS = 128  # bytes that libjpeg holds of a block of 8 x 8 samples
WORKING_MEMORY = 32 * 2**20  # bytes that a JPEG's decoder takes besides its coefficients and its result, at most
# Bytes a pixel of the decoders that do not say so when they run out of memory: measured with pictures of 54 million.
HIDDEN_MEMORY = {"WEBP": 16, "JPEG2000": 18}

register_heif_opener()  # with Pillow, which finds its own plugins itself


class ImageRejected(Exception):  # noqa: N818  (a verdict on a picture, not a failure of the program)
    """A picture that cannot be used; the message is the reason in words."""


@dataclass(frozen=True)
class JpegFrame:
    """A JPEG's frame header (ITU-T T.81, B.2.2).

    Attributes:
        process: the code of its marker; 0xC0 is baseline.
        bits: of a sample.
        width, height: in pixels.
        sampling: of each component, horizontally and vertically.
        whole: whether a decoder has to hold all coefficients before the first row: the picture comes in several scans.
    """

    process: int
    bits: int
    width: int
    height: int
    sampling: tuple[tuple[int, int], ...]
    whole: bool

    @property
    def memory(self) -> int:
        """Bytes of the coefficients that a decoder holds at once; 0 where it goes row by row."""
        if not self.whole:
            return 0
        widest, highest = max(across for across, _ in self.sampling), max(down for _, down in self.sampling)
        blocks = (
            -(-self.width * across // (8 * widest)) * -(-self.height * down // (8 * highest))
            for across, down in self.sampling
        )
        return COEFFICIENTS * sum(blocks)


def one_thread() -> None:
    """Let the decoders of AVIF and HEIC start no threads: each takes its share of a limited address space."""
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    heif_options.DECODE_THREADS = 1


def open_image(data: bytes, max_side: int, max_pixels: int, max_memory: int | None) -> Image.Image:
    """Open a picture of which no more than `max_pixels` pixels will be decoded.

    Where its long side is above `max_side`, a JPEG and a JPEG 2000 are decoded reduced by a power of two, to no less
    than twice that. So a JPEG of 93 million pixels is read, and a PNG of that size is not.

    Args:
        max_memory: bytes that decoding may take; None: any number.

    Raises:
        ImageRejected: it would be more pixels or more memory.
        UnidentifiedImageError, and anything else: it is no picture of a known format.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        # Pillow's guard knows nothing of reduced decoding; the check below takes its place.
        if data.startswith(b"\xff\xd8"):
            image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        elif b"\xff\x4f\xff\x51" in data[:4096]:
            image = Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(data))
        else:
            raise
    width, height = image.size
    decoded = width * height
    if max(width, height) > max_side:
        decoded = _reduce(image, data, 2 * max_side)
    if decoded > max_pixels:
        raise ImageRejected(f"too large: {width} x {height} pixels, the limit is {max_pixels}")
    # Phones put several pictures into one JPEG, which Pillow then calls MPO.
    frame = jpeg_frame(data) if isinstance(image, JpegImagePlugin.JpegImageFile) else None
    if max_memory is not None and frame is not None and frame.memory:
        needed = frame.memory + 4 * decoded + WORKING_MEMORY
        if needed > max_memory:
            raise ImageRejected(
                f"too large: a progressive JPEG of {width} x {height} pixels takes {needed >> 20} MB to decode, the "
                f"limit is {max_memory >> 20} MB"
            )
    return image


def _reduce(image: Image.Image, data: bytes, side: int) -> int:
    """Let the picture be decoded reduced, its long side no less than `side`; returns the pixels it then has."""
    width, height = image.size
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        frame = jpeg_frame(data)
        if frame is not None and frame.process not in LOSSLESS:
            image.draft(None, (side, side))
    elif isinstance(image, Jpeg2KImagePlugin.Jpeg2KImageFile):
        halvings = min(_jpeg2000_levels(data), (max(width, height) // side).bit_length() - 1)
        if halvings > 0:
            image.reduce = halvings
            return -(-width >> halvings) * -(-height >> halvings)
    return image.width * image.height


def beginning(data: bytes) -> str:
    """The format whose first bytes these are; "" where none of them begins so."""
    for name in FORMATS:
        _, accepts = Image.OPEN.get(name, (None, None))
        if len(data) >= 16 and accepts is not None and accepts(data[:16]):
            return name
    return ""


def jpeg_frame(data: bytes) -> JpegFrame | None:
    """The frame header of a JPEG (ITU-T T.81, tables B.1 and B.2); None where there is none."""
    position, frame = 2, None
    while position + 5 <= len(data) and data[position] == 0xFF:
        marker, body = data[position + 1], data[position + 4 : position + 4 + 255 * 3 + 6]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 6:
            factors = body[7 : 6 + 3 * body[5] : 3]
            sampling = tuple((max(1, both >> 4), max(1, both & 15)) for both in factors) or ((1, 1),)
            height, width = (int.from_bytes(body[at : at + 2], "big") for at in (1, 3))
            progressive = marker & 3 == 2
            frame = JpegFrame(marker, body[0], width, height, sampling, whole=progressive)
            if progressive:
                return frame
        elif marker == 0xDA:  # a scan: where it has not all components, others follow it
            several = frame is not None and bool(body) and body[0] < len(frame.sampling)
            return JpegFrame(**{**vars(frame), "whole": several}) if frame is not None else None
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return frame


def _jpeg2000_levels(data: bytes) -> int:
    """How often a JPEG 2000 can be halved: the decomposition levels of its marker COD (ITU-T T.800, A.6.1)."""
    position = data.find(b"\xff\x4f\xff\x51") + 2
    while 2 <= position <= len(data) - 10 and data[position] == 0xFF and data[position + 1] != 0x90:
        if data[position + 1] == 0x52:
            return data[position + 9]
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return 0
