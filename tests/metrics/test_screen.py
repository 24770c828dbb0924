"""What a user sees of real runs of both stages: TensorBoard's files through its own reader, and the terminal."""

from __future__ import annotations

import io
import json
import os
import platform
import pty
import re
import sys
import termios
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util.tensor_util import make_ndarray

from mbsd.batch import VIEW_NAMES
from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table
from mbsd.checkpoint.resume import weights_folder
from mbsd.config.data import DataConfig
from mbsd.data.augment import no_augmentation
from mbsd.data.batch_builder import BatchBuilder
from mbsd.data.decode_torchvision import TorchvisionDecoder
from mbsd.data.samples import TableSamples
from mbsd.data.spec import BatchSpec
from mbsd.data.text import load_tokenizer
from mbsd.metrics.board import tag_of
from mbsd.model.heads import MbsdForMatching
from mbsd.model.load import load_model
from tests.checkpoint.runs import checksums, step
from tests.conftest import Shop
from tests.ranks import Ranks, launch
from tests.settings import stage_1_words, stage_2_words

STEPS, HELD_OUT = 6, 24
OFTEN = [
    "--run.log_every=1",
    "--run.validate_every=3",
    f"--run.validate_samples={HELD_OUT}",
]


def stage_1(run: Path, shop: Shop, *more: object) -> list[object]:
    return stage_1_words(run, shop.catalog, STEPS, *OFTEN, "--model.dropout=0.1", *more)


def stage_2(run: Path, shop: Shop, start: Path) -> list[object]:
    small = ["--run.init_from", start, "--data.image_size=32", "--data.num_workers=0"]
    return stage_2_words(run, shop.catalog, shop.pairs, STEPS, *OFTEN, *small)


@pytest.fixture(scope="module")
def runs(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Stage 1 with dropout in front of a terminal on one rank, then stage 2 on two ranks that write to a file."""
    folder = tmp_path_factory.mktemp("screen")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 120))
    start = Ranks(1, stage_1(folder / "stage1", shop), folder / "log1", before=(_at_a_terminal, (os.ttyname(theirs),)))
    assert start.wait() == [0], start.printed() + _read(ours)
    terminal = _read(ours)
    os.close(ours)
    os.close(theirs)
    second = launch(2, stage_2(folder / "stage2", shop, folder / "stage1"), folder / "log2")
    boards = {}
    for name in ("stage1", "stage2"):
        boards[name] = EventAccumulator(str(folder / name / "tensorboard"), size_guidance={"tensors": 0, "images": 0})
        boards[name].Reload()
    return {"folder": folder, "terminal": terminal, "ranks": [p.read_text() for p in second.logs], **boards}


def _at_a_terminal(rank: int, name: str) -> None:
    os.dup2(os.open(name, os.O_WRONLY | os.O_NOCTTY), 2)
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115 (the one before was a file)


def _read(descriptor: int) -> str:
    os.set_blocking(descriptor, False)
    parts = []
    while True:
        try:
            parts.append(os.read(descriptor, 1 << 16))
        except BlockingIOError:
            return b"".join(parts).decode()


def _logged(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_curves_are_those_of_the_metrics(runs: dict[str, Any], stage: str) -> None:
    board, expected = runs[stage], {}
    for line in _logged(runs["folder"] / stage):
        for name, value in line.items():
            if name != "step":
                prefix, _, rest = name.rpartition("/")
                expected.setdefault(tag_of(rest, prefix or "train"), []).append((line["step"], np.float32(value)))
    for tag, points in expected.items():
        assert [(e.step, np.float32(e.value)) for e in board.Scalars(tag)] == points, tag
    found = set(board.Tags()["scalars"])
    assert {tag for tag in found - set(expected) if not tag.startswith("trust_ratio/")} == set()
    always = "samples_per_s tokens_per_s data_wait memory_gib padding_avoided"
    assert {f"speed/{name}" for name in always.split()} <= found
    assert {"train/lr", "train/grad_norm", "train/skipped_steps", "trust_ratio/all/median"} <= found
    terms = {"stage1": "mlm mpm", "stage2": "qi qt qv kl rs"}[stage]
    assert {f"train/loss_{term}" for term in terms.split()} <= found
    assert all(e.value > 0 for e in board.Scalars("speed/memory_gib"))


def test_the_modality_gap_is_a_curve(runs: dict[str, Any]) -> None:
    board = runs["stage2"]
    for section in ("modality", "validation"):
        values = {
            name: np.array([e.value for e in board.Scalars(f"{section}/{name}")])
            for name in (
                "accuracy_text",
                "accuracy_image",
                "modality_gap",
                "text_stronger",
                "image_stronger",
                "sdmi_weight",
            )
        }
        assert values["modality_gap"] == pytest.approx(values["accuracy_text"] - values["accuracy_image"], abs=1e-6)
        assert values["text_stronger"] + values["image_stronger"] == pytest.approx(1.0)
        assert (values["sdmi_weight"] > 0).all() and (values["sdmi_weight"] < 1).all()
    # of 16 samples a step, over two ranks
    counts = 16 * np.array([e.value for e in board.Scalars("modality/accuracy_full")])
    assert counts == pytest.approx(counts.round(), abs=1e-4)


def test_share_of_padding_avoided() -> None:
    from mbsd.metrics.throughput import Throughput
    from tests.model.reference import MIXED, hand_batch, random_samples, tiny_config

    config = tiny_config()
    batch = hand_batch(random_samples(MIXED, 0), VIEW_NAMES, config)
    throughput = Throughput(config, 1, torch.device("cpu"))
    throughput.count(batch)
    each = len(MIXED)
    padded = sum(each * max(batch.views.lengths[v * each : (v + 1) * each]) for v in range(3))
    assert throughput.read()["padding_avoided"] == pytest.approx(1 - sum(batch.views.lengths) / padded)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_no_panel_of_the_layout_is_empty(runs: dict[str, Any], stage: str) -> None:
    board = runs[stage]
    (event,) = board.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(make_ndarray(event.tensor_proto).item())
    titles = [category.title for category in layout.category]
    assert titles == [["watch", "machine"], ["watch", "modality gap", "machine"]][stage == "stage2"]
    for chart in [chart for category in layout.category for chart in category.chart]:
        tags = [t for t in board.Tags()["scalars"] for pattern in chart.multiline.tag if re.match(pattern, t)]
        assert tags, chart.title
    assert [list(c.multiline.tag) for c in layout.category[0].chart][0] == ["^train/loss$", "^validation/loss$"]


def test_settings_stand_on_the_page_of_hparams(runs: dict[str, Any]) -> None:
    content = runs["stage2"].SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    settings = {name: getattr(value, str(value.WhichOneof("kind"))) for name, value in start.hparams.items()}
    assert settings["optimizer.lr"] == 0.004 and settings["train_batch_size"] == 16 and settings["zero_stage"] == 2
    assert settings["stage"] == "matching" and settings["precision"] == "fp32" and settings["run.max_steps"] == STEPS


def _picture(board: EventAccumulator, tag: str, n: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(board.Images(tag)[n].encoded_image_string)).convert("RGB")).astype(int)


def test_masked_patches_are_rebuilt(runs: dict[str, Any], shop: Shop) -> None:
    board = runs["stage1"]
    assert [e.step for e in board.Images("masked_patches")] == [3, 6]
    first, last = (_picture(board, "masked_patches", n) for n in (0, 1))
    side, rows = 32, (first.shape[0] + 4) // 36
    catalog = Catalog(shop.catalog)
    items = catalog.indices("validation")
    spread = [int(items[n * len(items) // 8]) for n in range(8)]
    shown = [item for item in spread if catalog.has_image(item)][:rows]
    for row, item in enumerate(shown):
        top = row * 36
        columns = [[sheet[top : top + side, x : x + side] for x in (0, 36, 72)] for sheet in (first, last)]
        hidden, rebuilt, whole = columns[0]
        decoded = TorchvisionDecoder(side).decode([catalog.image(item) or b""], no_augmentation(1))
        assert np.abs(whole - decoded[0].permute(1, 2, 0).numpy()).max() <= 1
        masked = [(y, x) for y in range(0, 32, 8) for x in range(0, 32, 8) if not _same(hidden, whole, y, x)]
        assert len(masked) == 8  # half of 16 patches of 8 pixels
        for y in range(0, 32, 8):
            for x in range(0, 32, 8):
                assert _same(rebuilt, whole, y, x) is ((y, x) not in masked)
        assert not np.array_equal(rebuilt, columns[1][1]) and np.array_equal(hidden, columns[1][0])
    assert len(shown) == rows > 2


def _same(a: np.ndarray, b: np.ndarray, y: int, x: int) -> bool:
    return bool(np.abs(a[y : y + 8, x : x + 8] - b[y : y + 8, x : x + 8]).max() <= 1)


def test_cards_say_what_an_evaluation_says(runs: dict[str, Any], shop: Shop) -> None:
    """Each view of each card's sample by itself, through the saved model."""
    run, board = runs["folder"] / "stage2", runs["stage2"]
    table = make_ndarray(board.Tensors("cards/text_summary")[-1].tensor_proto).item().decode()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert len(rows) == 8 and {f"cards/{n}" for n in range(8)} <= set(board.Tags()["images"])

    catalog = Catalog(shop.catalog)
    samples = TableSamples(Table(shop.pairs, catalog), "validation")
    data = DataConfig(str(shop.catalog), image_size=32)
    model: Any = load_model(MbsdForMatching, weights_folder(str(run)), 32).eval()
    tokenizer = load_tokenizer(str(model.config.name_or_path))
    for n, (_, query, title, label, *printed) in enumerate(rows):
        sample = samples[n * len(samples) // 8]
        assert (query, title, int(label)) == (sample.text, catalog.title(sample.item), int(sample.label or 0))
        for view, shown in zip(VIEW_NAMES, printed, strict=True):
            spec = BatchSpec((view,), None, model.config.num_patches)
            builder = BatchBuilder(catalog, tokenizer, data, spec, TorchvisionDecoder(32))
            batch = builder.build([sample], np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))
            with torch.no_grad():
                assert float(shown) == pytest.approx(torch.sigmoid(model(batch).logits).item(), abs=2e-6)
    card = _picture(board, "cards/0", -1)
    assert card.shape == (200, 460, 3)


def test_precision_recall_curves(runs: dict[str, Any]) -> None:
    board, last = runs["stage2"], _logged(runs["folder"] / "stage2")[-1]
    for view in VIEW_NAMES:
        event = board.Tensors(f"precision_recall/{view}")[-1]
        true_positives, false_positives, true_negatives, false_negatives, precision, recall = make_ndarray(
            event.tensor_proto
        )
        assert event.step == STEPS
        assert true_positives[0] + false_positives[0] == HELD_OUT and false_negatives[0] == true_negatives[0] == 0
        half = 63  # of thresholds 0/126 … 126/126
        assert precision[half] == pytest.approx(last[f"validation/precision_{view}"], abs=1e-6)
        assert recall[half] == pytest.approx(last[f"validation/recall_{view}"], abs=1e-6)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_projector_has_vectors_facts_and_thumbnails(runs: dict[str, Any], stage: str) -> None:
    folder = runs["folder"] / stage / "tensorboard"
    config = (folder / "projector_config.pbtxt").read_text()
    (vectors,) = (folder / name for name in re.findall(r'tensor_path: "(.*)"', config))
    (facts,) = (folder / name for name in re.findall(r'metadata_path: "(.*)"', config))
    (sprite,) = (folder / name for name in re.findall(r'image_path: "(.*)"', config))
    values = np.loadtxt(vectors, delimiter="\t")
    assert values.shape == (HELD_OUT, 32) and len(np.unique(values.round(5), axis=0)) > HELD_OUT // 3
    lines = [line.split("\t") for line in facts.read_text().splitlines()]
    assert lines[0] == ["title", "category", "query", "label"] and len(lines) == 1 + HELD_OUT
    assert {len(line) for line in lines} == {4}
    assert Image.open(sprite).size == (5 * 48, 5 * 48)  # the smallest square of 24 thumbnails


def test_looking_changes_nothing(runs: dict[str, Any], shop: Shop, tmp_path: Path) -> None:
    """With dropout: validations and pictures on the way, or none before the end, and the same bits."""
    run = tmp_path / "run"
    launch(1, stage_1(run, shop, "--run.validate_every=0"), tmp_path / "log")
    with_looks, without = (checksums(step(path, STEPS)) for path in (runs["folder"] / "stage1", run))
    with_looks.pop("model/config.json", None), without.pop("model/config.json", None)
    assert with_looks == without


def test_a_terminal_sees_facts_and_a_bar(runs: dict[str, Any]) -> None:
    said = runs["terminal"]
    for part in ("start  ", "weights of scratch", f"1-{STEPS} of 16 samples", "Lamb, lr 0.004, ZeRO-2, fp32", "watch"):
        assert part in said, said
    last = [part for part in said.split("\r") if part.strip()][-1]
    assert re.search(r"100%\|.*\| 6/6 \[.*<.*(step/s|s/step).*loss=\d\.\d{4}.*data wait=\d+%", last), last
    assert "step 1/6 (" not in said


def test_elsewhere_lines_are_said_and_by_the_first_rank_alone(runs: dict[str, Any]) -> None:
    first, second = runs["ranks"]
    lines = [line for line in first.splitlines() if line.startswith("step ")]
    assert re.fullmatch(r"step 1/6 \(17%\): loss \d\.\d{4}, data wait \d+%, [\d.]+ steps/s, [\d:]+ left", lines[0]), (
        lines
    )
    assert lines[-1].startswith("step 6/6 (100%): ") and "validation loss" in lines[-1] and len(lines) == 2
    assert "\r" not in first
    assert [line for line in second.splitlines() if not line.startswith("[Gloo]")] == []


def test_a_line_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    from mbsd.metrics.progress import Progress

    for pause, expected in ((0.0, ["2/9", "3/9", "4/9"]), (60.0, ["2/9", "4/9"])):
        progress = Progress(0, 9, line_every=pause)
        progress.advance()
        progress.advance()
        progress.show({"loss": "1.0"})
        progress.advance()
        progress.advance()
        progress.close()
        assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == expected


def test_a_failure_names_rank_and_host_first(shop: Shop, tmp_path: Path) -> None:
    start = Ranks(2, stage_1(tmp_path / "run", shop), tmp_path / "log", before=(_break, ()))
    assert start.wait()[1] == 1
    said = [line for line in start.logs[1].read_text().splitlines() if not line.startswith("[Gloo]")]
    assert said[0] == f"rank 1 on {platform.node()}: OSError: the disk is gone" and "Traceback" in said[1]


def _break(rank: int) -> None:
    from mbsd.metrics.throughput import Throughput

    def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    if rank == 1:
        Throughput.count = fail  # type: ignore[method-assign]


def test_a_mistake_on_one_rank_names_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from mbsd.errors import UserError, exits_cleanly

    def said(rank: str, world_size: str, shared: bool) -> str:
        def fail() -> None:
            raise UserError("no room", shared=shared)

        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world_size)
        with pytest.raises(SystemExit, match="2"):
            exits_cleanly(fail)()
        return capsys.readouterr().err

    assert said("3", "4", shared=False) == f"rank 3 on {platform.node()}: error: no room\n"
    assert said("0", "4", shared=True) == said("0", "1", shared=False) == "error: no room\n"
    assert said("3", "4", shared=True) == ""
