"""The same pictures in a folder, in tars and behind URLs give the same catalogue, and no name leaves the root."""

from __future__ import annotations

import functools
import gzip
import http.server
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from mbsd.catalog.build.image_root import open_image_root
from mbsd.catalog.sources import Item
from mbsd.errors import UserError
from tests.catalog.helpers import image_folder, items_of, near, picture, pixels, quarantine, small_catalog

COUNT = 40


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("pictures") / "images", COUNT)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, images: Path) -> str:
    return small_catalog(tmp_path_factory.mktemp("expected") / "c", items_of(COUNT), images).fingerprint


def _tar(path: Path, files: list[Path]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for file in files:
            tar.add(file, arcname=f"./{file.name}")
    return path


@pytest.fixture
def tars(tmp_path: Path, images: Path) -> Path:
    """A folder of two tars, with what tools leave beside them."""
    files = sorted(images.iterdir())
    _tar(tmp_path / "tars" / "a.tar", files[:25])
    _tar(tmp_path / "tars" / "b.tar", files[25:])
    (tmp_path / "tars" / "a.idx").write_text("v1.2 25")
    (tmp_path / "tars" / ".hidden").write_text("")
    return tmp_path / "tars"


def test_folder_and_glob_of_tars(tmp_path: Path, tars: Path, expected: str) -> None:
    for number, root in enumerate([tars, f"{tars}/*", f"{tars}/?.tar", f"file://{tars}"]):
        assert small_catalog(tmp_path / str(number), items_of(COUNT), root).fingerprint == expected
    half = small_catalog(tmp_path / "half", items_of(COUNT), tars / "a.tar")
    assert [half.has_image(item) for item in range(COUNT)] == [True] * 25 + [False] * 15


def test_of_two_members_the_later_one_counts(tmp_path: Path) -> None:
    for name, colour in {"1": (200, 30, 40), "2": (10, 200, 10)}.items():
        (tmp_path / "x.jpg").write_bytes(picture(colour))
        _tar(tmp_path / "tars" / f"{name}.tar", [tmp_path / "x.jpg"])
    image = small_catalog(tmp_path / "c", [Item("a", "t", "x.jpg")], tmp_path / "tars").image(0)
    assert image is not None and near(pixels(image).getpixel((5, 5)), (10, 200, 10))


def test_a_folder_of_pictures_may_hold_a_tar(tmp_path: Path) -> None:
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "sub" / "a.jpg").write_bytes(picture())
    (tmp_path / "root" / "old.tar").write_bytes(b"")
    assert small_catalog(tmp_path / "c", [Item("a", "t", "sub/a.jpg")], tmp_path / "root").has_image(0)


def test_compressed_tars_are_refused(tmp_path: Path, tars: Path) -> None:
    data = gzip.compress((tars / "b.tar").read_bytes())
    (tmp_path / "named_tar.tar").write_bytes(data)
    with pytest.raises(UserError, match=r"named_tar\.tar: compressed; unpack it to a plain \.tar"):
        open_image_root(tmp_path / "named_tar.tar")
    (tars / "b.tar").rename(tars / "c.tar")
    (tars / "b.tar.gz").write_bytes(data)
    with pytest.raises(UserError, match=r"b\.tar\.gz: compressed; unpack"):
        open_image_root(tars)


def test_a_tar_that_ends_early_is_refused(tmp_path: Path, tars: Path) -> None:
    data = (tars / "a.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: data.index(b"003.jpg") + 700])
    with pytest.raises(UserError, match=r"cut\.tar: not an uncompressed tar file, or cut short \(unexpected end"):
        open_image_root(tmp_path / "cut.tar")


class _Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def served(tmp_path: Path, images: Path) -> Iterator[str]:
    """A URL below which the pictures lie; a secret lies above it."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "pictures").symlink_to(images)
    (tmp_path / "www" / "secret.jpg").write_bytes(picture())
    handler = functools.partial(_Server, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/pictures"
        server.shutdown()
        thread.join()


def test_http(tmp_path: Path, images: Path, served: str, expected: str) -> None:
    assert small_catalog(tmp_path / "c", items_of(COUNT), served).fingerprint == expected
    (images / "a #1? 100%.jpg").write_bytes(picture())
    names = [
        "a #1? 100%.jpg",
        "gone.jpg",
        "%2e%2e/secret.jpg",
        "..%2fsecret.jpg",
        "../secret.jpg",
        "https://shop/000.jpg",
    ]
    catalog = small_catalog(tmp_path / "d", [Item(name, "t", name) for name in names], f"{served}/")
    assert [catalog.has_image(item) for item in range(len(names))] == [True, False, False, False, False, True]
    reasons = {line["image"]: line["reason"] for line in quarantine(tmp_path / "d")}
    assert reasons["gone.jpg"] == reasons["%2e%2e/secret.jpg"] == "not found below the image root"
    assert reasons["../secret.jpg"] == "leads out of the image root by '..'"
    (images / "a #1? 100%.jpg").unlink()


def test_a_store_that_does_not_answer(tmp_path: Path, served: str) -> None:
    gone = served.replace("127.0.0.1", "127.0.0.2").rsplit(":", 1)[0] + ":1/pictures"
    catalog = small_catalog(tmp_path / "c", items_of(3), gone)
    assert not any(catalog.has_image(item) for item in range(3))
    assert all(line["reason"].startswith("cannot be read (ClientConnector") for line in quarantine(tmp_path / "c"))


def test_memory(tmp_path: Path, images: Path, expected: str) -> None:
    store = fsspec.filesystem("memory")
    for file in images.iterdir():
        store.pipe_file(f"/shop/pictures/{file.name}", file.read_bytes())
    assert small_catalog(tmp_path / "c", items_of(COUNT), "memory://shop/pictures").fingerprint == expected


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("nonsense://bucket/x", r"image root nonsense://bucket/x: cannot be opened \(Protocol not known: nonsense"),
        ("https://shop.example/images.tar", "a tar behind a URL is not read"),
        ("file:///does/not/exist", "/does/not/exist: no such folder or tar file"),
        ("nothing/*.tar", "no such folder or tar file, and nothing that it matches"),
    ],
)
def test_users_mistakes(root: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_image_root(root)
