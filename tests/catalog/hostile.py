"""A folder of every kind of file that shops send as a picture, each with what must become of it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

Colour = tuple[int, int, int]
RED, GREEN, BLUE, BLACK, WHITE = (220, 30, 40), (20, 200, 20), (20, 40, 210), (0, 0, 0), (255, 255, 255)


@dataclass(frozen=True)
class Case:
    """A file, and either the stored picture (size, colours at points) or how the reason begins (a pattern)."""

    name: str
    data: bytes | None  # None: made by hand, see `write_folder`
    size: tuple[int, int] = (0, 0)
    colours: tuple[tuple[tuple[int, int], Colour], ...] = ()
    reason: str = ""


# 16 x 16, the left half red: `cjpeg -quality 90 -sample 1x1 -arithmetic` of libjpeg-turbo wrote it.
ARITHMETIC = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb0043000302020302020303030304030304050805050404050a070706080c0a0c0c0b0a"
    "0b0b0d0e12100d0e110e0b0b1016101113141515150c0f171816141812141514ffdb00430103040405040509050509140d0b0d141414141414"
    "1414141414141414141414141414141414141414141414141414141414141414141414141414141414141414ffc90011080010001003011100"
    "021101031101ffcc000a0010100501101105ffda000c03010002110311003f00ff00d20ea5e08a735e2a2680677b96c21f65c184d210ffd9"
)


def half_red(size: tuple[int, int] = (40, 30), rest: Any = BLACK) -> Image.Image:
    """The left half red, the right half `rest`."""
    image = Image.new("RGB", size, rest)
    image.paste(RED, (0, 0, size[0] // 2, size[1]))
    return image


def encoded(image: Image.Image, format: str = "JPEG", **save: Any) -> bytes:
    whole_colour = {"HEIF": {"chroma": 444}, "AVIF": {"subsampling": "4:4:4"}}.get(format, {"subsampling": 0})
    buffer = io.BytesIO()
    image.save(buffer, format, **{"quality": 95, **whole_colour, **save})
    return buffer.getvalue()


def with_orientation(orientation: int, format: str = "JPEG") -> bytes:
    """60 x 40, its top left quarter red, as a camera stores it that was held in another way."""
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:20, :30] = RED
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif.tobytes(), format=format)


def cmyk_jpeg(samples: tuple[int, int, int, int], adobe_transform: int | None) -> bytes:
    """A one-coloured JPEG of four components with these very samples in the file, with or without Adobe's marker.

    Pillow writes the inverse of what it is given, and the marker with transform 0.
    """
    inverse = tuple(255 - sample for sample in samples)
    data = bytearray(encoded(Image.new("CMYK", (24, 24), inverse), quality=100))
    at = data.index(b"Adobe") - 4
    if adobe_transform is None:
        del data[at : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
    else:
        data[data.index(b"Adobe") + 11] = adobe_transform
    return bytes(data)


def twelve_bit_jpeg() -> bytes:
    """A JPEG of the extended process with 12 bits a sample (ITU-T T.81, B.2.2)."""
    data = bytearray(encoded(half_red()))
    frame = data.index(b"\xff\xc0")
    data[frame + 1], data[frame + 4] = 0xC1, 12
    return bytes(data)


def lossless_jpeg(pixels: np.ndarray[Any, Any]) -> bytes:
    """ITU-T T.81, annex H: predictor 1 (the sample to the left), 8 bits, red, green and blue; of [height, width, 3]."""
    height, width, _ = pixels.shape
    bits = ""
    for y in range(height):
        for x in range(width):
            for c in range(3):
                before = pixels[y, x - 1, c] if x else pixels[y - 1, x, c] if y else 128
                difference = int(pixels[y, x, c]) - int(before)
                category = abs(difference).bit_length()
                bits += f"{category:04b}"  # the table below gives category k the code k
                if category:
                    bits += f"{difference if difference > 0 else difference + 2**category - 1:0{category}b}"
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")

    def segment(marker: int, body: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body

    frame = struct.pack(">BHHB", 8, height, width, 3) + b"".join(bytes([c, 0x11, 0]) for c in b"RGB")
    table = bytes([0, *[0, 0, 0, 9], *[0] * 12, *range(9)])  # nine codes of four bits
    scan = bytes([3, *b"R\0", *b"G\0", *b"B\0", 1, 0, 0])
    return b"\xff\xd8" + segment(0xC3, frame) + segment(0xC4, table) + segment(0xDA, scan) + coded + b"\xff\xd9"


def png_bomb(side: int = 65536) -> bytes:
    """A header that promises side x side pixels, and a kilobyte."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def _palette_with_transparency() -> bytes:
    image = Image.new("P", (40, 30), 1)
    image.paste(0, (0, 0, 20, 30))
    image.putpalette([*RED, *BLUE])
    return encoded(image, format="PNG", transparency=1)


def _animation(format: str) -> bytes:
    frames = [half_red(), Image.new("RGB", (40, 30), BLUE)]
    lossless = {"lossless": True} if format == "WEBP" else {}
    return encoded(frames[0], format=format, save_all=True, append_images=frames[1:], duration=100, **lossless)


def _noise(**save: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), quality=50, subsampling=2, **save)


def _deep_grey() -> bytes:
    values = np.full((30, 40), 40_000, np.uint16)
    values[:, :20] = 20_000
    return encoded(Image.fromarray(values), format="PNG")


def _deep_pgm(highest: int) -> bytes:
    """The same greys as a portable greymap of two bytes a sample, up to `highest`."""
    values = np.full((30, 40), 40_000 * highest // 65_535, ">u2")
    values[:, :20] = 20_000 * highest // 65_535
    return b"P5\n40 30\n%d\n" % highest + values.tobytes()


def jpeg2000_bomb() -> bytes:
    """A codestream whose marker SIZ promises 60,000 x 60,000 pixels in one tile."""
    data = bytearray(encoded(half_red((64, 48)), format="JPEG2000", no_jp2=True))
    size = data.index(b"\xff\x51")
    for at in (size + 6, size + 22):
        data[at : at + 8] = struct.pack(">II", 60_000, 60_000)
    return bytes(data)


def _strip(colours: tuple[Colour, Colour], seed: int) -> bytes:
    """11,200 x 128, left and right of two colours with some noise; every row of blocks begins anew."""
    pixels = np.empty((128, 11_200, 3), np.int16)
    pixels[:, :5600], pixels[:, 5600:] = colours
    pixels += np.random.default_rng(seed).integers(-12, 12, (16, 1400, 3)).repeat(8, 0).repeat(8, 1).astype(np.int16)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return encoded(image, quality=90, subsampling=2, restart_marker_rows=1)


def product_photo() -> bytes:
    """A baseline JPEG of 11,200 x 8320 = 93 million pixels: above red and blue, below green and white.

    Put together from strips: between two of them stands the restart marker that follows eight rows of blocks.
    """
    strips = [_strip((RED, BLUE), 0), _strip((GREEN, WHITE), 1)]
    starts = [strip.index(b"\xff\xda") + 14 for strip in strips]  # behind the header of a scan of three components
    above, below = (strip[start:-2] for strip, start in zip(strips, starts, strict=True))
    header = bytearray(strips[0][: starts[0]])
    frame = header.index(b"\xff\xc0")
    header[frame + 5 : frame + 7] = (65 * 128).to_bytes(2, "big")
    return bytes(header) + b"\xff\xd7".join([above] * 33 + [below] * 32) + b"\xff\xd9"


def progressive_header(width: int, height: int) -> bytes:
    """A progressive JPEG of full colour that promises so many pixels."""
    data = bytearray(encoded(half_red(), progressive=True))
    frame = data.index(b"\xff\xc2")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _half_clear() -> bytes:
    image = Image.new("RGBA", (40, 30), (*BLACK, 128))
    image.paste((*RED, 255), (0, 0, 20, 30))
    return encoded(image, format="PNG")


def _large_with_alpha() -> bytes:
    image = Image.new("RGBA", (7000, 5000), (*BLUE, 255))
    image.paste((0, 255, 0, 0), (3500, 0, 7000, 5000))
    return encoded(image, format="PNG", compress_level=1)


def cases() -> Iterator[Case]:
    left, right = (5, 15), (34, 15)
    halves = ((left, RED), (right, BLACK))
    good, noisy, slow = encoded(half_red()), _noise(), _noise(progressive=True)
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 1000)

    yield Case("good.jpg", good, (40, 30), halves)
    yield Case("truncated.jpg", noisy[: len(noisy) // 2], reason="cannot be decoded .*truncated")
    yield Case("progressive_cut.jpg", slow[: len(slow) // 3], reason="cannot be decoded .*truncated")
    yield Case("progressive.jpg", encoded(half_red(), progressive=True), (40, 30), halves)
    yield Case("empty.jpg", b"", reason="an empty file")
    yield Case("page.jpg", b"\n<!DOCTYPE html><html>404</html>", reason="not a picture but a web page")
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    yield Case("pointer.jpg", lfs, reason="not a picture but a git-LFS pointer; fetch")
    yield Case("postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n", reason="not a picture in a known format")
    yield Case("only_a_start.jpg", b"\xff\xd8\xff\xe0", reason=".+")
    yield Case("a_png.jpg", encoded(half_red(), format="PNG", pnginfo=text), (40, 30), halves)
    yield Case("a_jpeg.png", good, (40, 30), halves)
    yield Case("no_extension", good, (40, 30), halves)

    # Ink as people mean it: no cyan, full magenta and yellow = red. Adobe stores 255 - ink, others the ink.
    red = ((12, 12), (255, 0, 0))
    yield Case("cmyk.jpg", cmyk_jpeg((0, 255, 255, 0), None), (24, 24), (red,))
    yield Case("adobe_cmyk.jpg", cmyk_jpeg((255, 0, 0, 255), 0), (24, 24), (red,))
    # ITU-T T.871's YCbCr of 255 - (255, 0, 0), which is cyan; K as it is.
    yield Case("adobe_ycck.jpg", cmyk_jpeg((179, 171, 1, 255), 2), (24, 24), (red,))
    yield Case("cmyk.tif", encoded(Image.new("CMYK", (24, 24), (0, 255, 255, 0)), format="TIFF"), (24, 24), (red,))

    yield Case("12_bit.jpg", twelve_bit_jpeg(), reason="a JPEG of 12 bits a sample")
    yield Case("lossless.jpg", lossless_jpeg(np.asarray(half_red())), (40, 30), halves)
    yield Case("arithmetic.jpg", ARITHMETIC, (16, 16), (((4, 8), RED), ((12, 8), BLACK)))
    greys = ((left, (78, 78, 78)), (right, (156, 156, 156)))  # 20,000 and 40,000 of 65,535
    yield Case("16_bit.png", _deep_grey(), (40, 30), greys)
    yield Case("grey.jpg", encoded(Image.new("L", (24, 24), 90)), (24, 24), (((12, 12), (90, 90, 90)),))
    yield Case("palette.png", _palette_with_transparency(), (40, 30), ((left, RED), (right, WHITE)))
    yield Case("half_clear.png", _half_clear(), (40, 30), ((left, RED), (right, (127, 127, 127))))
    for name, format in {"apng.png": "PNG", "animated.gif": "GIF", "animated.webp": "WEBP"}.items():
        yield Case(name, _animation(format), (40, 30), halves)
    yield Case("a.bmp", encoded(half_red(), format="BMP"), (40, 30), halves)
    yield Case("a.tif", encoded(half_red(), format="TIFF"), (40, 30), halves)
    corner = (((10, 10), RED), ((50, 10), BLACK), ((10, 30), BLACK), ((50, 30), BLACK))
    for orientation in range(1, 9):
        yield Case(f"exif_{orientation}.jpg", with_orientation(orientation), (60, 40), corner)
    yield Case("exif_6.tif", with_orientation(6, "TIFF"), (60, 40), corner)
    yield Case("exif_8.png", with_orientation(8, "PNG"), (60, 40), corner)
    yield Case("broken_exif.jpg", encoded(half_red(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), (40, 30), halves)

    for name, format in {"a.avif": "AVIF", "a.heic": "HEIF", "a.jp2": "JPEG2000"}.items():
        whole = encoded(half_red(), format=format)
        yield Case(name, whole, (40, 30), halves)
        yield Case(f"cut_{name}", whole[: len(whole) * 9 // 10], reason="cannot be decoded ")
        yield Case(f"start_of_{name}", whole[:100], reason=f"begins as {format}, but is cut short")
    heic = encoded(half_red(), format="HEIF")
    assert heic[4:12] == b"ftypheix"
    yield Case("as_mif1.heic", heic[:8] + b"mif1" + heic[12:], (40, 30), halves)
    for format in ("AVIF", "HEIF"):
        for orientation in (2, 3, 6, 8):
            yield Case(f"turned_{orientation}.{format}", with_orientation(orientation, format), (60, 40), corner)
        clear = Image.new("RGBA", (40, 30), (*BLUE, 0))
        yield Case(f"clear.{format}", encoded(clear, format=format), (40, 30), ((left, WHITE), (right, WHITE)))
    yield Case("deep.jp2", encoded(Image.open(io.BytesIO(_deep_grey())), format="JPEG2000"), (40, 30), greys)
    yield Case("16_bit.pgm", _deep_pgm(65_535), (40, 30), greys)
    yield Case("12_bit.pgm", _deep_pgm(4095), (40, 30), greys)
    yield Case("cut.pgm", _deep_pgm(65_535)[:1000], reason="cannot be decoded .*truncated")
    yield Case("bomb.pgm", b"P5\n60000 60000\n65535\n" + bytes(1000), reason="too large")
    yield Case(
        "bomb.jp2", jpeg2000_bomb(), reason="cannot be decoded .* 60000 x 60000 pixels are too large for the mem"
    )
    yield Case("93_megapixels.jpg", product_photo(), (320, 238), (((5, 5), RED), ((310, 5), BLUE), ((5, 230), GREEN)))
    yield Case(
        "progressive.jpeg", progressive_header(11_200, 8320), reason=r"too large: a progressive JPEG of .* 5\d\d MB"
    )

    yield Case("dot.png", encoded(Image.new("RGB", (1, 1), RED), format="PNG"), (1, 1), (((0, 0), RED),))
    line = Image.new("RGB", (1, 20_000), RED)
    line.paste(BLUE, (0, 10_000, 1, 20_000))
    yield Case("line.png", encoded(line, format="PNG"), (1, 320), (((0, 80), RED), ((0, 240), BLUE)))
    large = (((80, 100), BLUE), ((240, 100), WHITE))
    yield Case("large_with_alpha.png", _large_with_alpha(), (320, 229), large)
    yield Case("bomb.png", png_bomb(), reason="too large")
    yield Case("hides_a_file.jpg", good + bytes(200_000), (40, 30), halves)

    yield Case("folder", None, reason="not a regular file")
    yield Case("broken_link.jpg", None, reason="not found below the image root")
    yield Case("pipe.jpg", None, reason="not a regular file")
    yield Case("../secret.jpg", None, reason="leads out of the image root by '..'")
    yield Case("loop.jpg", None, reason="not found below the image root")


def write_folder(folder: Path) -> list[Case]:
    """Write all cases below `folder`, and beside it the secret that one of them is after."""
    import os

    folder.mkdir(parents=True)
    found = list(cases())
    for case in found:
        if case.data is not None:
            (folder / case.name).write_bytes(case.data)
    (folder / "folder").mkdir()
    (folder / "broken_link.jpg").symlink_to("nothing.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder.parent / "secret.jpg").write_bytes(encoded(half_red()))
    return found
