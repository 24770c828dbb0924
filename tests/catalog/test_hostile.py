"""What no build may die of: files that are not what they claim, decoders that hang, crash or eat the memory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from PIL import Image

from mbsd.catalog.build.decode_pool import DecodePool
from mbsd.catalog.build.image_folder import InFile
from mbsd.catalog.build.normalise import NormalisedImage
from mbsd.catalog.build.options import ImageLimits
from mbsd.catalog.reader import Catalog
from tests.catalog.helpers import near, picture, pixels, quarantine, write_jsonl
from tests.catalog.hostile import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    encoded,
    half_red,
    product_photo,
    progressive_header,
    write_folder,
)
from tests.ranks import ROOT

GB = 10**9


def _peak_of_tree(process: subprocess.Popen[str]) -> int:
    """Wait for a process; return the largest sum of the resident memory of it and all it started."""
    peak, root = 0, psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        for one in [root, *_children(root)]:
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peak = max(peak, total)
        time.sleep(0.02)
    return peak


def _children(root: psutil.Process) -> list[psutil.Process]:
    try:
        return root.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def test_a_folder_of_hostile_files(tmp_path: Path) -> None:
    cases = write_folder(tmp_path / "root" / "images")
    rows = [{"item_id": case.name, "title": "a title", "image": case.name} for case in cases]
    write_jsonl(tmp_path / "items.jsonl", *rows)
    words = ["catalog", "build", "items.jsonl", "--images", "root/images", "--out", "c", "--max-rejects", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mbsd.cli", *words, "--workers", "2"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    peak = _peak_of_tree(process)
    assert process.returncode == 0
    assert 0.05 * GB < peak < 1.5 * GB
    catalog = Catalog(tmp_path / "c")
    reasons = {line["item_id"]: line["reason"] for line in quarantine(tmp_path / "c")}
    assert len(catalog) == len(cases) > 45
    for item, case in enumerate(cases):
        record, jpeg = catalog[item]
        assert record.item_id == case.name
        if case.reason:
            assert jpeg is None and re.match(case.reason, reasons.pop(case.name)), case.name
            continue
        assert jpeg is not None, (case.name, reasons.get(case.name))
        image = pixels(jpeg)
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", case.size), case.name
        assert "progressive" not in image.info and b"\xff\xc0" in jpeg and len(jpeg) < 20_000, case.name
        for point, colour in case.colours:
            assert near(image.getpixel(point), colour), (case.name, point, image.getpixel(point))
    assert not reasons


@dataclass(frozen=True)
class Hangs:
    """A picture whose reading never comes to an end, in a call that no exception interrupts."""

    def read(self, max_bytes: int) -> bytes:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        lock = threading.Lock()
        while True:
            lock.acquire()


@dataclass(frozen=True)
class Dies:
    """A picture at which the process is killed, as by the kernel when the memory is full, or by a broken decoder."""

    signal: signal.Signals

    def read(self, max_bytes: int) -> bytes:
        os.kill(os.getpid(), self.signal)
        raise AssertionError("not reached")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> InFile:
    file = tmp_path_factory.mktemp("good") / "good.jpg"
    file.write_bytes(picture())
    return InFile(str(file), 0, file.stat().st_size)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(2, 320, ImageLimits(seconds=1.5, memory=200 * 2**20)) as pool:
        yield pool


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (Hangs(), "took longer than 1.5 s to read and decode"),
        (Dies(signal.SIGKILL), "its decoder was killed, probably for taking too much memory"),
        (Dies(signal.SIGSEGV), "its decoder crashed (SIGSEGV)"),
    ],
)
def test_it_costs_one_row(pool: DecodePool, good: InFile, place: Hangs | Dies, reason: str) -> None:
    """The pictures around it, in its chunk and in the chunks beside it, are as if it had not been there."""
    chunks = [[good, None, good], [good, place, good, good], [good] * 5]
    futures = [pool.submit(chunk) for chunk in chunks]
    results = [pool.results(chunk, future) for chunk, future in zip(chunks, futures, strict=True)]
    assert results[1].pop(1) == reason and results[0].pop(1) is None
    expected = good.read(10**6)
    for result in [result for chunk in results for result in chunk]:
        assert isinstance(result, NormalisedImage) and result.jpeg == expected


@dataclass(frozen=True)
class LeavesPid:
    """A good picture that leaves the number of the process that reads it in a file."""

    pid: str
    picture: InFile

    def read(self, max_bytes: int) -> bytes:
        Path(self.pid).write_text(str(os.getpid()))
        return self.picture.read(max_bytes)


def test_a_worker_that_is_killed_between_two_pictures(tmp_path: Path, good: InFile) -> None:
    place, pids = LeavesPid(str(tmp_path / "pid"), good), set()
    with DecodePool(1, 320, ImageLimits()) as pool:
        for _ in range(3):
            (result,) = pool.results([place], pool.submit([place]))
            assert isinstance(result, NormalisedImage)
            pid = int((tmp_path / "pid").read_text())
            pids.add(pid)
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.3)
    assert len(pids) == 3


def test_limits_of_a_real_picture(tmp_path: Path, good: InFile) -> None:
    """48 million pixels: 144 MB of memory, and longer than a hundredth of a second."""
    file = tmp_path / "large.png"
    file.write_bytes(encoded(Image.new("RGB", (8000, 6000)), format="PNG", compress_level=1))
    large = InFile(str(file), 0, file.stat().st_size)
    expected = {
        ImageLimits(memory=100 * 2**20): r"too large to (decode|read) in the memory there is",
        ImageLimits(seconds=0.01): r"took longer than 0.01 s to read and decode",
        ImageLimits(pixels=10**6): r"too large: 8000 x 6000 pixels, the limit is 1000000",
        ImageLimits(file_bytes=1000): r"too large: \d+ bytes, the limit is 1000",
    }
    for limits, reason in expected.items():
        with DecodePool(1, 320, limits) as pool:
            (found,) = pool.results([large], pool.submit([large]))
            assert isinstance(found, str) and re.fullmatch(reason, found)
    with DecodePool(1, 320, ImageLimits()) as pool:
        (result,) = pool.results([large], pool.submit([large]))
        assert isinstance(result, NormalisedImage) and (result.width, result.height) == (320, 240)


def test_what_is_decoded_reduced_takes_little_memory(tmp_path: Path) -> None:
    """A product photo of 93 million pixels and a JPEG 2000 of 12; a WebP that does not fit is not called broken."""
    files = {
        "photo.jpg": product_photo(),
        "large.jp2": encoded(half_red((4000, 3000), GREEN), format="JPEG2000", quality_layers=[100]),
        "large.webp": encoded(half_red((4000, 3000)), format="WEBP", method=0),
        "progressive.jpg": progressive_header(4000, 3000),
    }
    places = [InFile(str(tmp_path / name), 0, len(data)) for name, data in files.items()]
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with DecodePool(1, 320, ImageLimits(memory=80 * 2**20)) as pool:
        photo, jpeg2000, webp, progressive = pool.results(places, pool.submit(places))
    assert isinstance(photo, NormalisedImage) and (photo.width, photo.height) == (320, 238)
    for point, colour in (((5, 5), RED), ((310, 5), BLUE), ((5, 230), GREEN), ((310, 230), WHITE)):
        assert near(pixels(photo.jpeg).getpixel(point), colour, 12)
    assert isinstance(jpeg2000, NormalisedImage) and (jpeg2000.width, jpeg2000.height) == (320, 240)
    assert near(pixels(jpeg2000.jpeg).getpixel((80, 120)), RED) and near(
        pixels(jpeg2000.jpeg).getpixel((240, 120)), GREEN
    )
    assert isinstance(webp, str) and re.search("too large (to decode in|for) the memory there is", webp)
    assert (
        progressive == "too large: a progressive JPEG of 4000 x 3000 pixels takes 103 MB to decode, the limit is 80 MB"
    )


def test_a_picture_that_is_cut_at_any_byte_is_rejected_or_whole() -> None:
    """Progressive and baseline: what is accepted shows the whole picture."""
    from mbsd.catalog.build.normalise import ImageRejected, normalise_image

    for progressive in (False, True):
        data = encoded(half_red((64, 64), (20, 40, 210)), progressive=progressive)
        accepted = 0
        for cut in range(0, len(data), 7):
            try:
                image = pixels(normalise_image(data[:cut]).jpeg)
            except ImageRejected:
                continue
            accepted += 1
            assert near(image.getpixel((60, 60)), (20, 40, 210), 8), cut
        assert accepted < 5 and isinstance(normalise_image(data), NormalisedImage)
