"""A run's checkpoint leaves as a transformers folder and an ONNX graph that say what the trained model says."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.io import ImageReadMode, decode_jpeg
from transformers import AutoImageProcessor

from mbsd.checkpoint import store
from mbsd.checkpoint.resume import weights_folder
from mbsd.checkpoint.shards import Shards
from mbsd.data.augment import no_augmentation
from mbsd.data.decode_torchvision import TorchvisionDecoder
from mbsd.errors import UserError
from mbsd.model.heads import MbsdForClassification, MbsdForMaskedModelling, MbsdForMatching
from mbsd.model.load import load_model
from mbsd.model.mbsd import MbsdModel
from mbsd.model.patchify import normalise_pixels
from mbsd.tools.export import onnx_graph
from mbsd.tools.export.export import export
from mbsd.tools.export.onnx_graph import write_graph
from tests.conftest import Shop
from tests.damage import damage
from tests.model.reference import MIXED, deviation, hand_batch, random_samples, randomise, shown, text_of, tiny_config
from tests.ranks import ROOT, command, launch
from tests.settings import TINY, run_words, stage_2_words

VIEWS = ("full", "text", "image")


@pytest.fixture(scope="module")
def half(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of stage 2 in bf16 on two ranks, whose master weights lie in two shards."""
    run = tmp_path_factory.mktemp("half") / "run"
    words = ["--run.validate_samples=16", "--data.max_text_tokens=80"]
    words = stage_2_words(run, shop.catalog, shop.pairs, 4, *TINY, *words, bf16={"enabled": True})
    launch(2, words, run.parent / "log")
    return run


@pytest.fixture(scope="module")
def full(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning in float32."""
    run = tmp_path_factory.mktemp("full") / "run"
    words = run_words(run, shop.catalog, 4, "--data.table", shop.tags, "--run.validate_samples=16", *TINY)
    launch(1, words, run.parent / "log", launcher="finetune")
    return run


LOAD = """
import json, sys
import mbsd
assert "torch" not in sys.modules and "transformers" not in sys.modules
from transformers import AutoModel, AutoTokenizer, AutoImageProcessor
model, tokenizer = AutoModel.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
pictures = AutoImageProcessor.from_pretrained(sys.argv[1])
print(json.dumps({
    "model": type(model).__name__, "dtype": str(model.dtype), "length": tokenizer.model_max_length,
    "cls": tokenizer.cls_token, "size": dict(pictures.size), "query": pictures.max_query_tokens,
}))
"""


@pytest.mark.distributed
def test_a_half_precision_run_leaves_in_float32(half: Path, tmp_path: Path) -> None:
    """`mbsd export --onnx` and then the Auto classes, each in a process of its own."""
    out = tmp_path / "out"
    done = command("export", half, "--out", out, "--onnx")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "MbsdForMatching" in done.stdout and "step-00000004" in done.stdout
    assert "float32, the optimizer's master weights of a bfloat16 run" in done.stdout
    largest = [float(word) for word in done.stdout.split("torch: ")[1].replace(",", "").split() if word not in VIEWS]
    assert len(largest) == 3 and max(largest) < 1e-4

    loaded = subprocess.run([sys.executable, "-c", LOAD, str(out)], cwd=ROOT, capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    assert json.loads(loaded.stdout) == {
        "model": "MbsdModel", "dtype": "torch.float32", "length": 80, "cls": "[CLS]",
        "size": {"height": 32, "width": 32}, "query": 64,
    }  # fmt: skip

    rounded = load_file(half / "checkpoints" / "step-00000004" / "model" / "model.safetensors")
    exported = load_file(out / "model.safetensors")
    assert exported.keys() == rounded.keys()
    assert all(weight.dtype == torch.float32 for weight in exported.values())
    assert all(exported[name].bfloat16().equal(weight) for name, weight in rounded.items())
    finer = [name for name, weight in rounded.items() if not exported[name].equal(weight.float())]
    assert len(finer) > len(rounded) / 2, "the master weights are finer than the rounded ones"


@pytest.mark.distributed
def test_an_averaged_run_leaves_with_its_averages(shop: Shop, tmp_path: Path) -> None:
    """In float32, as the checkpoint's own model has them rounded; the raw master weights are others."""
    run, out = tmp_path / "run", tmp_path / "out"
    words = ["--run.ema=0.9", "--run.validate_every=0", "--run.validate_samples=16"]
    words = stage_2_words(run, shop.catalog, shop.pairs, 4, *TINY, *words, bf16={"enabled": True})
    launch(2, words, tmp_path / "log")
    export(run, out)
    checkpoint = run / "checkpoints" / store.name_of(4)
    exported, rounded = load_file(out / "model.safetensors"), load_file(checkpoint / "model" / "model.safetensors")
    assert all(exported[name].bfloat16().equal(weight) for name, weight in rounded.items())
    assert any(not exported[name].equal(weight.float()) for name, weight in rounded.items())
    facts = json.loads((checkpoint / "run.json").read_text(encoding="utf-8"))
    averages = Shards(checkpoint, [0, 1]).weights(facts["parameters"])
    assert all(exported[f"mbsd.{name}" if f"mbsd.{name}" in exported else name].equal(weight) for name, weight in (
        (name.removeprefix("model.").removeprefix("mbsd."), weight) for name, weight in averages.items()
    ) if name in exported)  # fmt: skip
    shard = load_file(checkpoint / "state-0000.safetensors")
    assert not shard["group0/master"].equal(shard["group0/average"])


@pytest.mark.distributed
def test_what_is_loaded_computes_what_the_trained_model_computes(full: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    done = export(full / "checkpoints" / store.name_of(4), tmp_path / "out")
    assert done.architecture == "MbsdForClassification" and done.weights == "float32" and not done.differences
    trained = load_model(MbsdForClassification, weights_folder(str(full)), 32).eval()
    loaded = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert type(loaded) is MbsdModel
    batch = hand_batch(random_samples(MIXED, seed=70, side=32), VIEWS, loaded.config)
    with torch.no_grad():
        assert deviation(loaded(batch).h_VBD, trained(batch).h_VBD) < 1e-6
        again = MbsdForClassification.from_pretrained(tmp_path / "out").eval()
        assert deviation(again(batch).logits, trained(batch).logits) < 1e-6


@pytest.mark.distributed
def test_the_image_processor_gives_the_networks_pixels(full: Path, tmp_path: Path) -> None:
    export(full, tmp_path / "out")
    noise = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((140, 90)).save(file, "JPEG")
    decoded = TorchvisionDecoder(32).decode([file.getvalue()], no_augmentation(1))
    picture = decode_jpeg(torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8), mode=ImageReadMode.RGB)
    found = AutoImageProcessor.from_pretrained(tmp_path / "out")(picture, return_tensors="pt")["pixel_values"]
    assert deviation(found, normalise_pixels(decoded, torch.float32)) < 1e-6


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (MbsdForMatching, {"match_head": "per_view", "image_cls": True, "representation": "cls"}),
        (MbsdForClassification, {"num_labels_out": 7}),
        (MbsdForMaskedModelling, {}),
    ],
)
def test_the_graph_gives_each_sample_of_each_view_what_torch_gives_it(
    kind: Callable[..., MbsdModel], changes: dict[str, object], tmp_path: Path
) -> None:
    """One sample at a time and without padding, against the packed forward of all samples in all views."""
    import onnxruntime

    config = tiny_config(**changes)
    model = kind(config).eval()
    randomise(model, seed=71)
    largest = write_graph(model, tmp_path / "model.onnx", 144)
    assert set(largest) == set(VIEWS) and max(largest.values()) < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    samples = random_samples(MIXED, seed=72)
    samples = [sample for sample in samples if sample.query is not None]
    batch = hand_batch(samples, VIEWS, config)
    with torch.no_grad():
        h_VBD = getattr(model, "mbsd", model).encode(batch).h_VBD
        logits = None if kind is MbsdForMaskedModelling else model(batch).logits
    for v, view in enumerate(VIEWS):
        for b, sample in enumerate(samples):
            length, with_image = shown(sample, view)
            ids, types = (np.array([row[:length]]) for row in text_of(sample))
            image = sample.image if sample.image is not None else torch.zeros(3, 64, 64, dtype=torch.uint8)
            found = session.run(None, {
                "input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types,
                "pixel_values": normalise_pixels(image[None], torch.float32).numpy(),
                "image_mask": np.array([int(with_image)]),
            })  # fmt: skip
            assert deviation(torch.from_numpy(found[0][0]), h_VBD[v, b]) < 1e-5
            if logits is not None:
                expected = logits[v, b]
                column = found[1][0, v] if kind is MbsdForMatching else found[1][0]
                assert deviation(torch.as_tensor(column), expected) < 1e-5


@pytest.mark.distributed
def test_a_damaged_model_is_not_taken(full: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An exported one is refused; of a run the damaged checkpoint is named, and there is no other."""
    export(full, tmp_path / "out")
    assert weights_folder(str(tmp_path / "out")) == tmp_path / "out"
    shutil.copytree(full, tmp_path / "run")
    chosen = weights_folder(str(tmp_path / "run"))
    assert "WARNING" not in capfd.readouterr().err
    for name in ("model.safetensors", "tokenizer.json"):
        damage(tmp_path / "out" / name)
        with pytest.raises(UserError, match=rf"out: damaged, not as it was written \({name}: its checksum .*export it"):
            weights_folder(str(tmp_path / "out"))
        damage(tmp_path / "out" / name)  # the bit falls back
        assert weights_folder(str(tmp_path / "out")) == tmp_path / "out"
    damage(chosen / "model.safetensors")
    with pytest.raises(UserError, match=r"model: damaged, not as it was written \(model/model.safetensors"):
        weights_folder(str(chosen))
    with pytest.raises(UserError, match="neither a run folder with a complete checkpoint"):
        weights_folder(str(tmp_path / "run"))
    assert f"WARNING: {chosen.parent} is not taken: model/model.safetensors: its checksum" in capfd.readouterr().err


@pytest.mark.distributed
def test_mistakes_are_one_line_and_leave_nothing(full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there: exists already"):
        export(full, tmp_path / "there")
    with pytest.raises(UserError, match="no complete checkpoint"):
        export(tmp_path / "there", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(onnx_graph, "PACKAGES", ("onnx", "a_package_nobody_has"))
        with pytest.raises(UserError, match=r"a_package_nobody_has is not installed; pip install 'mbsd\[onnx\]'"):
            export(full, tmp_path / "out", onnx=True)
    with monkeypatch.context() as patch:
        patch.setattr(onnx_graph, "TOLERANCE", -1.0)
        with pytest.raises(ArithmeticError, match="differs from torch"):
            export(full, tmp_path / "out", onnx=True)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]

    done = command("export", tmp_path / "nothing", "--out", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
