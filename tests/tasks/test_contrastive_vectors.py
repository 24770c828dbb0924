"""Contrastive vectors of a catalogue in several views, on disk and from Python, and what is nearest to a query."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mbsd.catalog.reader import Catalog
from mbsd.errors import UserError
from mbsd.inference import Encoder
from mbsd.io.stored_vectors import read_vectors
from tests.damage import damage
from tests.docs.pages import blocks
from tests.ranks import ROOT, Ranks, command, launch
from tests.tasks.incomplete import COUNT, DIM, NO_PICTURE, NO_TITLE, SCRIPT, build_incomplete_catalog, save_contrastive
from tests.tasks.test_vectors import kill_after

VIEWS = ("text", "image", "mean")


@dataclass(frozen=True)
class Made:
    """A catalogue, its raw pictures, a model, and the model's vectors of the catalogue."""

    catalog: Path
    pictures: Path
    model: Path
    vectors: Path

    def words(self, out: Path, *more: object) -> list[object]:
        return [
            "--model", self.model, "--out", out, "--data.catalog", self.catalog, "--data.image_size=32",
            "--data.num_workers=0", "--items_per_file=16", "--micro_batch=8", *more,
        ]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("contrastive")
    catalog = build_incomplete_catalog(folder)
    titles = Catalog(catalog).table()["title"].to_pylist()
    save_contrastive(folder / "model", titles)
    made = Made(catalog, folder / "raw" / "images", folder / "model", folder / "vectors")
    launch(2, made.words(made.vectors, "--vector=contrastive", "--views", "text,image,mean"), folder / "log",
           launcher="embed")  # fmt: skip
    return made


@pytest.mark.distributed
def test_several_views_are_columns_and_who_lacks_one_is_null(made: Made) -> None:
    manifest = json.loads((made.vectors / "manifest.json").read_text())
    assert (
        manifest["complete"] and manifest["vector"] == "contrastive" and manifest["views"] == dict.fromkeys(VIEWS, DIM)
    )
    table = pq.read_table(made.vectors / "vectors")
    assert table.column_names == ["item_id", "item", "vector_text", "vector_image", "vector_mean"]
    assert table["item"].to_pylist() == list(range(COUNT))
    lacking = {"text": NO_TITLE, "image": NO_PICTURE, "mean": ()}
    stored = {view: read_vectors(made.vectors, view) for view in VIEWS}
    for view, found in stored.items():
        assert [item for item, v in enumerate(table[f"vector_{view}"].to_pylist()) if v is None] == list(lacking[view])
        assert np.flatnonzero(~found.present_n).tolist() == list(lacking[view])
        lengths = np.linalg.norm(found.vectors_nE, axis=1)
        assert np.abs(lengths - found.present_n).max() < 1e-6, "unit vectors, or zeros"
        assert found.ids.to_pylist() == Catalog(made.catalog).table()["item_id"].to_pylist()
    text, image, mean = (stored[view].vectors_nE.astype(np.float64) for view in VIEWS)
    both = text + image
    assert np.abs(mean - both / np.linalg.norm(both, axis=1, keepdims=True)).max() < 1e-6
    assert np.array_equal(mean[list(NO_TITLE)], image[list(NO_TITLE)].astype(np.float32))
    assert np.array_equal(read_vectors(made.vectors).vectors_nE, stored["mean"].vectors_nE), "mean, where none is named"


@pytest.mark.distributed
def test_killed_and_resumed_and_in_half_precision(made: Made, tmp_path: Path) -> None:
    """The default of a contrastive model is the same three views; the files are the same bytes."""
    out = tmp_path / "vectors"
    assert Ranks(1, made.words(out), tmp_path / "killed", before=(kill_after, (1,)), launcher="embed").wait() != [0]
    with pytest.raises(UserError, match=r"manifest.json: its vectors are not finished; start launchers/embed.py again"):
        read_vectors(out)
    launch(1, made.words(out), tmp_path / "again", launcher="embed")
    for path in (made.vectors / "vectors").iterdir():
        assert (out / "vectors" / path.name).read_bytes() == path.read_bytes()
    half = tmp_path / "half"
    launch(1, made.words(half, "--dtype=float16", "--views=image", "--split=test"), tmp_path / "log", launcher="embed")
    found, test = read_vectors(half), Catalog(made.catalog).indices("test")
    assert found.view == "image" and found.items.tolist() == test.tolist()
    assert np.abs(found.vectors_nE - read_vectors(made.vectors, "image").vectors_nE[test]).max() < 1e-3
    with pytest.raises(UserError, match="holds vectors of image and not of the view mean"):
        read_vectors(half, "mean")
    damage(half / "vectors" / "part-000000.parquet")
    with pytest.raises(UserError, match=r"part-000000.parquet: not as it was written \(its checksum"):
        read_vectors(half)
    with pytest.raises(UserError, match="no vectors, it has no manifest.json"):
        read_vectors(tmp_path)


@pytest.mark.distributed
def test_other_vectors_of_the_same_model(made: Made, tmp_path: Path) -> None:
    """h of the view full by itself, and beside the projected ones: the same numbers, of another width."""
    launch(1, made.words(tmp_path / "h", "--vector=h", "--view=full"), tmp_path / "log", launcher="embed")
    launch(1, made.words(tmp_path / "all", "--views=mean,full"), tmp_path / "log2", launcher="embed")
    alone, beside = read_vectors(tmp_path / "h"), read_vectors(tmp_path / "all", "full")
    assert pq.read_schema(tmp_path / "h" / "vectors" / "part-000000.parquet").names == ["item_id", "item", "vector"]
    assert alone.vectors_nE.shape == beside.vectors_nE.shape == (COUNT, 32)
    assert np.abs(alone.vectors_nE - beside.vectors_nE).max() < 1e-6
    mean = read_vectors(tmp_path / "all").vectors_nE
    assert np.abs(mean - read_vectors(made.vectors).vectors_nE).max() < 1e-6


@pytest.mark.distributed
def test_python_says_what_embed_wrote(made: Made) -> None:
    """Of each view to 1e-5, from the shop's own titles and pictures; the view follows from what is given."""
    catalog = Catalog(made.catalog)
    items = [0, 1, *NO_TITLE, *NO_PICTURE, COUNT - 1]
    titles = [catalog.title(item) or None for item in items]
    paths = [made.pictures / f"{item:07d}.jpg" if catalog.has_image(item) else None for item in items]
    encoder = Encoder.load(made.model, batch_size=3)
    expected = {view: read_vectors(made.vectors, view).vectors_nE[items] for view in VIEWS}
    found = {
        "text": encoder.embed(titles=titles), "image": encoder.embed(images=paths),
        "mean": encoder.embed(titles=titles, images=paths),
    }  # fmt: skip
    for view, vectors in found.items():
        assert vectors.dtype == np.float32 and vectors.shape == (len(items), DIM)
        assert np.abs(vectors - expected[view]).max() < 1e-5, view
        assert np.abs(encoder.embed(titles, paths, view=view) - vectors).max() < 1e-5
    assert not encoder.embed(titles=[None]).any() and encoder.encode(titles=titles, images=paths).shape[1] == 32
    with pytest.raises(UserError, match="has vectors h, in which titles and pictures do not compare"):
        Encoder.load(made.model, vector="h").embed(titles=titles)


@pytest.mark.distributed
def test_what_is_nearest(made: Made, tmp_path: Path) -> None:
    """By title, by picture and by both, against all cosines; the vectors of another model are refused."""
    catalog = Catalog(made.catalog)
    encoder = Encoder.load(made.model)
    stored = read_vectors(made.vectors, "mean").vectors_nE.astype(np.float64)
    title, picture = "red linen dress", made.pictures / f"{5:07d}.jpg"
    for given in ({"titles": [title]}, {"images": [picture]}, {"titles": [title], "images": [picture]}):
        (hits,) = encoder.search(made.vectors, **given, k=7)
        cosines = stored @ encoder.embed(**given)[0]
        assert [hit.item for hit in hits] == np.argsort(-cosines)[:7].tolist()
        assert [hit.item_id for hit in hits] == [catalog.record(hit.item).item_id for hit in hits]
        assert np.abs(np.array([hit.score for hit in hits]) - np.sort(cosines)[::-1][:7]).max() < 1e-6
    by_image = encoder.open_index(made.vectors, "image")
    assert encoder.search(by_image, images=[picture], k=1)[0][0].item == 5
    found = {hit.item for hit in encoder.search(by_image, titles=[title], k=COUNT)[0]}
    assert found == set(range(COUNT)) - set(NO_PICTURE)
    with pytest.raises(UserError, match="query 1: has neither a title nor a picture"):
        encoder.search(by_image, titles=[title, ""])
    other = Encoder.load(save_contrastive(tmp_path / "other", ["red dress"] * 3, seed=91))
    with pytest.raises(UserError, match=r"vectors are of another model \(.*/model, [0-9a-f]{12}…\) than .*/other"):
        other.search(made.vectors, titles=[title])
    launch(1, made.words(tmp_path / "h", "--vector=h"), tmp_path / "log", launcher="embed")
    with pytest.raises(
        UserError, match=r"holds vectors h of the view full.*--vector contrastive --views text,image,mean"
    ):
        encoder.search(tmp_path / "h", titles=[title])


class Page(HTMLParser):
    """What a browser would make of a page: its text, its pictures, and any tag that runs or loads something."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.pictures: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            self.pictures.append(values["src"] or "")
        elif tag in ("script", "link", "iframe") or "src" in values or "href" in values:
            self.loads.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


@pytest.mark.distributed
def test_a_page_of_neighbours(made: Made, tmp_path: Path) -> None:
    """A text, an item and a picture: what the search finds, pictures that decode, titles that are text and no tags."""
    catalog = Catalog(made.catalog)
    item_id, out = catalog.record(2).item_id, tmp_path / "page.html"
    words = ["--item", item_id, "--query", "<b>red & blue</b>", "--picture", made.pictures / f"{5:07d}.jpg"]
    done = command("neighbours", made.vectors, *words, "-k", COUNT, "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    page = Page(out)
    assert page.loads == [] and SCRIPT in page.texts and "<b>red & blue</b>" in page.texts
    pictured = COUNT - len(NO_PICTURE)
    assert len(page.pictures) == pictured + pictured + 1 + pictured, "the item is shown once, as the query"
    for source in page.pictures:
        assert source.startswith("data:image/jpeg;base64,")
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).load()
    assert page.texts.count("no picture") == 3 * len(NO_PICTURE) and page.texts.count("no title") == 3 * len(NO_TITLE)
    hits = Encoder.load(made.model).search(made.vectors, titles=["<b>red & blue</b>"], k=COUNT)[0]
    lines = done.stdout.partition("text: ")[2].splitlines()[1 : COUNT + 1]
    assert [line.split()[1] for line in lines] == [hit.item_id for hit in hits]
    own = done.stdout.partition("text: ")[0].splitlines()[1:]
    assert len(own) == COUNT - 1 and item_id not in {line.split()[1] for line in own}


@pytest.mark.distributed
def test_mistakes_in_what_is_asked_are_one_line(made: Made, another: Path, tmp_path: Path) -> None:
    catalog = Catalog(made.catalog)
    lacking = catalog.record(NO_PICTURE[0]).item_id
    other = save_contrastive(tmp_path / "other", ["red dress"] * 3, seed=91)
    for words, said in (
        ([], "nothing is asked: give --query TEXT"),
        (["--item", "nobody"], "has no such item"),
        (["--item", lacking, "--view", "image"], "has no vector in the view image"),
        (["--item", lacking, "--view", "full"], "holds vectors of text, image, mean and not of the view full"),
        (["--item", lacking, "--catalog", another], "not the catalogue that the vectors in"),
        (["--query", "red", "--model", other], "its vectors are of another model"),
        (["--picture", tmp_path / "nothing.jpg"], "nothing.jpg"),
    ):
        done = command("neighbours", made.vectors, *words, "--out", tmp_path / "page.html")
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and said in done.stderr, done.stderr
    assert not (tmp_path / "page.html").exists()


@pytest.fixture
def another(tmp_path: Path) -> Path:
    """Another catalogue."""
    (tmp_path / "shop").mkdir()
    return build_incomplete_catalog(tmp_path / "shop", seed=6)


@pytest.mark.distributed
def test_the_pages_python_about_contrastive_models(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/deploy.md: its block runs as it stands."""
    (block,) = (code for code in blocks(ROOT / "docs/deploy.md", "python") if "runs/contrastive" in code)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "contrastive").symlink_to(made.model)
    (tmp_path / "runs" / "vectors").symlink_to(made.vectors)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"Encoder": Encoder}
    exec(block, names)
    assert names["queries"].shape == (1, DIM) and len(names["hits"][0]) == 20
