from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from mbsd.catalog.build.normalise import normalise_image
from mbsd.catalog.build.open_image import BASELINE, ImageRejected, jpeg_frame
from tests.catalog.helpers import near, picture, pixels
from tests.catalog.hostile import GREEN, RED, encoded, half_red, with_orientation


def _is_baseline(jpeg: bytes) -> bool:
    return b"\xff\xc0" in jpeg and b"\xff\xc2" not in jpeg


def test_a_good_jpeg_keeps_its_bytes() -> None:
    data = picture(size=(320, 200))
    result = normalise_image(data)
    assert (result.jpeg, result.width, result.height) == (data, 320, 200)


def test_progressive_becomes_baseline() -> None:
    data = picture(size=(64, 64), progressive=True)
    assert not _is_baseline(data)
    result = normalise_image(data)
    assert _is_baseline(result.jpeg) and near(pixels(result.jpeg).getpixel((30, 30)), (200, 30, 40))


def test_long_side_is_capped() -> None:
    result = normalise_image(picture(size=(900, 450)), max_side=100)
    assert (result.width, result.height) == pixels(result.jpeg).size == (100, 50)
    assert normalise_image(picture(size=(2000, 2)), max_side=100).height == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_made_upright(orientation: int) -> None:
    result = normalise_image(with_orientation(orientation))
    image = pixels(result.jpeg)
    assert image.size == (60, 40) and image.getexif().get(0x0112, 1) == 1
    assert near(image.getpixel((8, 8)), RED, 12) and near(image.getpixel((50, 30)), (0, 0, 0), 12)


def _palette_with_transparency() -> bytes:
    image = Image.new("P", (20, 20), 0)
    image.putpalette([10, 200, 10, 0, 0, 0])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    return buffer.getvalue()


def _animation() -> bytes:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _deep_grey() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 20), 128 * 257, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (picture((0, 255, 255, 0), mode="CMYK"), (255, 0, 0)),
        (picture(90, mode="L"), (90, 90, 90)),
        (picture((10, 20, 200, 0), mode="RGBA", format="PNG"), (255, 255, 255)),
        (picture((10, 20, 200, 255), mode="RGBA", format="PNG"), (10, 20, 200)),
        (picture((0, 128), mode="LA", format="PNG"), (127, 127, 127)),
        (picture(1, mode="1", format="PNG"), (255, 255, 255)),
        (_palette_with_transparency(), (255, 255, 255)),
        (_animation(), (250, 0, 0)),
        (_deep_grey(), (128, 128, 128)),
        (picture((30, 140, 60), format="WEBP"), (30, 140, 60)),
        (picture((30, 140, 60), format="BMP"), (30, 140, 60)),
    ],
    ids=["cmyk", "grey", "clear", "opaque", "grey+alpha", "1 bit", "palette", "gif", "16 bit", "webp", "bmp"],
)
def test_any_mode_becomes_rgb(data: bytes, expected: tuple[int, int, int]) -> None:
    result = normalise_image(data)
    image = pixels(result.jpeg)
    assert image.mode == "RGB" and image.format == "JPEG" and image.size == (result.width, result.height)
    assert near(image.getpixel((10, 10)), expected, 10)


def test_what_is_decoded_reduced_counts_as_reduced() -> None:
    """The limit is on the pixels that are decoded: of 800 x 600, fewer where the format can."""
    photo = half_red((800, 600), GREEN)
    several = {"save_all": True, "append_images": [photo]}
    readable = {
        "JPEG": (encoded(photo), 400 * 300),
        "MPO": (encoded(photo, format="MPO", **several), 400 * 300),
        "JPEG2000": (encoded(photo, format="JPEG2000"), 200 * 150),
        "codestream": (encoded(photo, format="JPEG2000", no_jp2=True), 200 * 150),
        "turned": (encoded(photo, exif=_exif(8)), 400 * 300),
    }
    for name, (data, decoded) in readable.items():
        result = normalise_image(data, max_side=100, max_pixels=decoded)
        assert (result.width, result.height) == ((75, 100) if name == "turned" else (100, 75)), name
        left, right = ((37, 90), (37, 10)) if name == "turned" else ((10, 37), (90, 37))
        image = pixels(result.jpeg)
        assert near(image.getpixel(left), RED, 8) and near(image.getpixel(right), GREEN, 8), name
        with pytest.raises(ImageRejected, match=f"too large: 800 x 600 pixels, the limit is {decoded - 1}"):
            normalise_image(data, max_side=100, max_pixels=decoded - 1)
    whole = {"PNG": encoded(photo, format="PNG"), "JPEG2000": encoded(photo, format="JPEG2000", num_resolutions=1)}
    for data in whole.values():
        assert normalise_image(data, max_side=100, max_pixels=800 * 600).width == 100
        with pytest.raises(ImageRejected, match="too large: 800 x 600 pixels"):
            normalise_image(data, max_side=100, max_pixels=800 * 600 - 1)


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def test_the_memory_of_a_jpegs_coefficients() -> None:
    """2 bytes a sample, in whole blocks of 8 x 8 (ITU-T T.81, A.2.4), where the picture comes in several scans."""
    photo = half_red((800, 596))
    luminance, quarter = 100 * 75 * 128, 50 * 38 * 128
    for save, memory in (
        ({"progressive": True}, 3 * luminance),
        ({"progressive": True, "subsampling": 2}, luminance + 2 * quarter),
        ({}, 0),
    ):
        frame = jpeg_frame(encoded(photo, **save))
        assert frame is not None and (frame.width, frame.height, frame.memory) == (800, 596, memory)
    one_by_one = bytearray(encoded(photo))
    one_by_one[one_by_one.index(b"\xff\xda") + 4] = 1  # components of the first scan
    frame = jpeg_frame(bytes(one_by_one))
    assert frame is not None and frame.process == BASELINE and frame.memory == 3 * luminance
    assert jpeg_frame(b"\xff\xd8\xff\xe0\x00\x04ab") is None


def test_truncated_is_rejected() -> None:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(buffer, "JPEG")
    data = buffer.getvalue()
    assert normalise_image(data).jpeg == data
    for cut in (0.9, 0.5, 0.1, 0.01):
        with pytest.raises(ImageRejected):
            normalise_image(data[: int(len(data) * cut)])


@pytest.mark.parametrize(
    "data", [b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF"]
)
def test_what_is_no_picture_is_rejected(data: bytes) -> None:
    with pytest.raises(ImageRejected, match=r".+"):
        normalise_image(data)


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_a_bomb_is_rejected_by_its_header(side: int) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    tracemalloc.start()
    try:
        with pytest.raises(ImageRejected, match="too large"):
            normalise_image(bomb)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
