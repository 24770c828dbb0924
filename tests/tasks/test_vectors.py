"""Vectors of a catalogue: one row an item, whoever writes them; and the same from Python."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mbsd.catalog.reader import Catalog
from mbsd.errors import UserError
from mbsd.inference import Encoder
from mbsd.tools.export.export import export
from tests.damage import damage
from tests.docs.pages import blocks
from tests.ranks import ROOT, Ranks, launch, refused
from tests.settings import stage_1_words
from tests.tasks.conftest import Trained
from tests.tasks.market import NUM_ITEMS, POSITIVE, Market

PART = 96


def arguments(market: Market, model: Path, out: Path, *more: object) -> list[object]:
    return [
        "--model", model, "--out", out, "--data.catalog", market.catalog, "--data.image_size=32",
        "--data.num_workers=0", f"--items_per_file={PART}", "--micro_batch=32", *more,
    ]  # fmt: skip


def vectors_of(out: Path) -> np.ndarray[Any, Any]:
    table = pq.read_table(out / "vectors")
    width = table["vector"].type.list_size
    return table["vector"].combine_chunks().flatten().to_numpy().reshape(-1, width)


def kill_after(rank: int, files: int) -> None:
    """This process dies like by `kill -9` when it is about to publish its next file after so many."""
    publish, count = os.replace, [0]

    def counted(source: Any, target: Any) -> None:
        if Path(target).suffix == ".parquet":
            count[0] += 1
            if count[0] > files:
                os.kill(os.getpid(), signal.SIGKILL)
        publish(source, target)

    os.replace = counted


@pytest.fixture(scope="module")
def whole(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All vectors by two ranks that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "vectors"
    launch(2, arguments(trained.market, trained.model("attributes"), out), out.parent / "log", launcher="embed")
    return out


@pytest.mark.distributed
def test_one_row_an_item_in_the_catalogues_order(trained: Trained, whole: Path) -> None:
    table, catalog = pq.read_table(whole / "vectors"), Catalog(trained.market.catalog)
    assert table["item_id"].to_pylist() == catalog.table()["item_id"].to_pylist()
    assert table["item"].to_pylist() == list(range(NUM_ITEMS))
    assert vectors_of(whole).shape == (NUM_ITEMS, 32) and np.isfinite(vectors_of(whole)).all()
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["complete"] and manifest["items"] == NUM_ITEMS == sum(file["rows"] for file in manifest["files"])
    assert [file["file"] for file in manifest["files"]] == [f"vectors/part-{n:06d}.parquet" for n in range(9)]
    assert len(np.unique(vectors_of(whole).round(4), axis=0)) > NUM_ITEMS / 2


@pytest.mark.distributed
def test_killed_and_gone_on_with_on_other_ranks(trained: Trained, whole: Path, tmp_path: Path) -> None:
    """Two ranks die with three of nine files written; three ranks write the rest: the same bytes, no item twice."""
    out = tmp_path / "vectors"
    words = arguments(trained.market, trained.model("attributes"), out)
    killed = Ranks(2, words, tmp_path / "killed", before=(kill_after, (1,)), launcher="embed")
    assert all(code != 0 for code in killed.wait())
    there = {path.name: path.stat().st_mtime_ns for path in (out / "vectors").glob("part-*")}
    assert 0 < len(there) < 9 and not json.loads((out / "manifest.json").read_text())["complete"]
    launch(3, words, tmp_path / "again", launcher="embed")
    assert {name: (out / "vectors" / name).stat().st_mtime_ns for name in there} == there, "written twice"
    assert sorted(os.listdir(out / "vectors")) == sorted(os.listdir(whole / "vectors"))
    for path in (whole / "vectors").iterdir():
        assert (out / "vectors" / path.name).read_bytes() == path.read_bytes()
    refused = Ranks(1, [*words, "--view=text"], tmp_path / "other", launcher="embed")
    assert refused.wait() == [2]
    assert "manifest.json" in refused.errors()[0] and "view='full'" in refused.errors()[0]


@pytest.mark.distributed
def test_damaged_files_are_named_and_written_again(trained: Trained, whole: Path, tmp_path: Path) -> None:
    """One cut short, one with a byte that fell over, one gone; the others stay. Of a finished and of a killed start."""
    finished, killed = tmp_path / "finished", tmp_path / "killed"
    shutil.copytree(whole, finished)
    expected = {path.name: path.read_bytes() for path in (whole / "vectors").iterdir()}
    assert sorted(expected) == [f"part-{n:06d}.parquet" for n in range(9)], "nothing else is left in it"
    words = arguments(trained.market, trained.model("attributes"), killed)
    assert Ranks(1, words, tmp_path / "first", before=(kill_after, (4,)), launcher="embed").wait() != [0]
    for out, parts in ((finished, range(9)), (killed, range(4))):
        words = arguments(trained.market, trained.model("attributes"), out)
        names = [f"part-{part:06d}.parquet" for part in parts]
        damage(out / "vectors" / names[1])
        os.truncate(out / "vectors" / names[2], 1000)
        (out / "vectors" / names[0]).unlink()
        kept = {name: (out / "vectors" / name).stat().st_mtime_ns for name in names[3:]}
        before = (out / "manifest.json").read_text()
        started = launch(1, words, tmp_path / f"{out.name}_log", launcher="embed")
        named = started.lines("is not as it was written")
        assert len(named) == 2 and names[1] in named[0] and "checksum" in named[0], named
        assert names[2] in named[1] and ("1000 bytes" in named[1] or "checksum" in named[1])
        assert {name: (out / "vectors" / name).stat().st_mtime_ns for name in kept} == kept, "whole, and written again"
        assert {path.name: path.read_bytes() for path in (out / "vectors").iterdir()} == expected
        assert (out / "manifest.json").read_text() == (whole / "manifest.json").read_text()
        assert out is killed or before == (whole / "manifest.json").read_text()
    (killed / "manifest.json").write_text("{")
    line = refused(1, words, tmp_path / "refused", launcher="embed")
    assert "manifest.json: damaged, no JSON is in it" in line and "choose another out" in line


@pytest.mark.distributed
@pytest.mark.parametrize("stage", ["masked", "matching"])
def test_a_pre_trained_model_in_half_precision(stage: str, market: Market, tmp_path: Path) -> None:
    from mbsd.catalog.tables import Table, write_table

    more: list[object] = []
    if stage == "matching":
        import pyarrow as pa

        tags = Table(market.table("attributes"))
        names = ("text", "item", "label", "split")
        columns = {name: tags.column(name) for name in names}
        rows = len(tags)
        pairs = pa.table({**columns, "source": ["given"] * rows, "evidence": [2] * rows, "replaced": [""] * rows})
        write_table("pairs", pairs, Catalog(market.catalog), tmp_path / "pairs.parquet")
        more = ["--stage=matching", "--data.table", tmp_path / "pairs.parquet"]
    words = stage_1_words(tmp_path / "run", market.catalog, 2, "--run.validate_samples=8", *more)
    launch(1, words, tmp_path / "log")
    out = tmp_path / "vectors"
    launch(
        1,
        arguments(market, tmp_path / "run", out, "--dtype=float16", "--split=test"),
        tmp_path / "embed",
        launcher="embed",
    )
    assert vectors_of(out).dtype == np.float16 and len(vectors_of(out)) == len(Catalog(market.catalog).indices("test"))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["vector"] == {"masked": "mean", "matching": "h"}[stage]


@pytest.mark.distributed
def test_python_says_what_embed_wrote(trained: Trained, whole: Path) -> None:
    """Titles and the shop's own picture files, by path, as bytes and as PIL: the vectors of the catalogue to 1e-5."""
    catalog, expected = Catalog(trained.market.catalog), vectors_of(whole)
    raw = trained.market.folder / "raw" / "images"
    items = [0, 1, 17, 200, NUM_ITEMS - 1]
    titles = [catalog.title(item) for item in items]
    paths = [raw / f"{item:07d}.jpg" for item in items]
    encoder = Encoder.load(trained.model("attributes"), batch_size=3)
    assert np.abs(encoder.encode(titles=titles, images=paths) - expected[items]).max() < 1e-5
    given = [str(paths[0]), paths[1].read_bytes(), *paths[2:]]
    assert np.abs(encoder.encode(titles=titles, images=given) - expected[items]).max() < 1e-5
    # What PIL has decoded is no JPEG any more; the catalogue would keep the JPEG's own bytes.
    pictures = [Image.open(path) for path in paths]
    assert np.abs(encoder.encode(titles=titles, images=pictures) - expected[items]).max() < 0.2
    assert np.abs(encoder.encode(titles=titles) - expected[items]).max() > 0.1
    assert encoder.encode(images=[None, paths[0]]).shape == (2, 32)


@pytest.mark.distributed
def test_a_picture_without_loss_is_the_same_as_pil_and_as_file(trained: Trained, tmp_path: Path) -> None:
    encoder = Encoder.load(trained.model("attributes"))
    picture = Image.effect_noise((700, 500), 80).convert("RGB")
    picture.save(tmp_path / "noise.png")
    by_file, by_pil = (encoder.encode(images=[image]) for image in (tmp_path / "noise.png", picture))
    assert np.array_equal(by_file, by_pil)
    for mode in ("CMYK", "L", "RGBA", "P"):
        assert np.isfinite(encoder.encode(images=[picture.convert(mode)])).all()


@pytest.mark.distributed
def test_tags_and_categories(trained: Trained) -> None:
    catalog = Catalog(trained.market.catalog)
    items = list(range(0, 60))
    titles, images = [catalog.title(i) for i in items], [catalog.image(i) for i in items]
    tones, fabrics = zip(*(catalog.record(i).category.split() for i in items), strict=True)
    scores = Encoder.load(trained.model("attributes")).score(["tone:warm", "fabric:natural"], titles, images)
    assert scores.shape == (60, 2)
    assert ((scores[:, 0] > 0.5) == (np.array(tones) == "warm")).mean() > 0.85
    assert ((scores[:, 1] > 0.5) == (np.array(fabrics) == "natural")).mean() > 0.85
    sensitive = Encoder.load(trained.model("sensitive"))
    assert sensitive.labels == (f"not {POSITIVE}", POSITIVE)
    found = sensitive.classify(titles, images)
    assert found.shape == (60, 2) and np.allclose(found.sum(1), 1)
    with pytest.raises(UserError, match="scores no tags"):
        sensitive.score(["tone:warm"], titles)


def test_what_cannot_be_encoded(trained: Trained, tmp_path: Path) -> None:
    encoder = Encoder.load(trained.model("attributes"))
    (tmp_path / "text.jpg").write_text("not a picture")
    for images, said in (([b"\xff\xd8"], r"images\[0\]"), ([None, tmp_path / "text.jpg"], r"images\[1\] .*text.jpg")):
        with pytest.raises(UserError, match=said):
            encoder.encode(images=images)
    with pytest.raises(UserError, match="2 and 1"):
        encoder.encode(["a", "b"], [None])
    with pytest.raises(UserError, match="none"):
        encoder.encode()


def test_the_pages_python(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """README and docs/deploy.md: their blocks run as they stand."""
    readme, deploy = (blocks(ROOT / name, "python") for name in ("README.md", "docs/deploy.md"))
    assert len(readme) == 1 and deploy[0] == readme[0]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "attributes").symlink_to(trained.model("attributes"))
    (tmp_path / "dress.jpg").write_bytes(Catalog(trained.market.catalog).image(0) or b"")
    export(tmp_path / "runs" / "attributes", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in deploy:
        if "runs/contrastive" in block:
            continue  # of a model that is not trained here (test_contrastive_vectors.py)
        exec(block, names)
    assert names["vectors"].shape == (1, 32) and names["scores"].shape == (1, 1)
    assert names["model"].config.hidden_size == 32 and names["pictures"] and names["tokenizer"]
