"""`mbsd bench latency`: turns, limits and numbers on steps of known length; the forms of MBSD say the same."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from mbsd.batch import Batch
from mbsd.data.views import TextTokens, pack
from mbsd.errors import UserError
from mbsd.model.mbsd import MbsdModel
from mbsd.tools.bench.latency import LatencyBench, measure_latency
from mbsd.tools.bench.latency_chart import draw_latency
from mbsd.tools.bench.latency_models import NAMES, Contestant, Served, Step, make_contestant, runs_on, tokens_of
from tests.baselines.samples import samples_of
from tests.model.reference import random_model, tiny_config
from tests.ranks import command


def sleeps(seconds: float, log: list[str], name: str, image: bool = True) -> Contestant:
    def step(samples: int) -> Step:
        def run() -> None:
            log.append(name)
            time.sleep(seconds * samples)

        return run

    return Contestant(step, step if image else None, 10_000_000)


def test_turns_limits_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log: list[str] = []
    contestants = {
        "mbsd": sleeps(0.004, log, "mbsd"),
        "bert-encoder": sleeps(0.004, log, "bert-encoder", image=False),
        "kaleido": sleeps(0.04, log, "kaleido"),
        "ofa": sleeps(0.3, log, "ofa", image=False),
    }
    bench = LatencyBench((1, 2), (), steps=8, seconds=0.2, threads=1)
    result = measure_latency(bench, contestants)
    cells = {(cell["model"], cell["part"], cell["batch"]): cell for cell in result["cells"]}
    assert len(cells) == 2 * (2 + 4)
    for batch in bench.batches:
        mbsd, heavy = cells["mbsd", "whole", batch], cells["kaleido", "whole", batch]
        assert mbsd["steps"] == 8 and 1 <= heavy["steps"] < 8 and cells["ofa", "whole", batch]["steps"] == 1
        assert mbsd["mean_ms"] >= 4 * batch and mbsd["p95_ms"] >= mbsd["median_ms"] >= 4 * batch
        assert 2 < heavy["x_mbsd"] <= 11 and heavy["x_bare"] > 2 and "x_mbsd" not in mbsd
        assert heavy["cpu_ms"] < heavy["mean_ms"]
    turn = log[-9:]
    assert {"mbsd", "bert-encoder"} <= set(turn) and turn.count("mbsd") <= 5  # a step each, in turns
    shown = capsys.readouterr().out
    assert "image side" in shown and "whole model" in shown and "or as many as 0.2 s allow" in shown
    assert f"[{cells['kaleido', 'whole', 1]['steps']}]" in shown
    picture = tmp_path / "charts" / "latency.png"
    draw_latency(result, picture)
    assert picture.read_bytes().startswith(b"\x89PNG") and 5_000 < picture.stat().st_size < 150_000


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(UserError, match="gpt.*expected some of mbsd,"):
        measure_latency(LatencyBench((1,), ("gpt",), 1, 1.0, before + 1))
    measure_latency(LatencyBench((1,), (), 1, 1.0, before + 1), {"mbsd": sleeps(0.0, [], "mbsd")})
    assert torch.get_num_threads() == before


def test_tokens() -> None:
    """`[CLS] 8 [SEP] 32 [SEP]` are 43; ViT has no title."""
    expected = {"mbsd": 92, "mbsd-onnx": 92, "bert-encoder": 92, "bert": 43, "vit": 10 + 49, "vilt": 43 + 50,
                "fashionbert": 43 + 16, "kaleido": 43 + 55, "m6": 43 + 16, "ofa": 43 + 196}  # fmt: skip
    assert {name: tokens_of(name) for name in expected} == expected


@torch.no_grad()
def test_what_is_served_says_what_the_packed_model_says() -> None:
    config = tiny_config()
    model: MbsdModel = random_model(config, 0)
    samples = samples_of(((3, 5, True), (3, 5, True)), 1, side=config.image_size)
    texts: list[TextTokens] = [text for text, _ in samples]
    pixels = torch.stack([pixels for _, pixels in samples if pixels is not None])
    ids_N, positions_N, types_N, views = pack(texts, [True, True], ("full",), config.num_patches)
    batch = Batch(ids_N, positions_N, types_N, pixels, views, items_B=torch.arange(2))
    ids, types = ids_N.view(2, -1), types_N.view(2, -1)
    served = Served(model)(ids, torch.ones_like(ids), types, pixels, torch.ones(2, dtype=torch.int64))
    torch.testing.assert_close(served, model.encode(batch).h_VBD[0], rtol=1e-5, atol=1e-5)


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "latency.json"
    few = ["--batch", 1, "--steps", 2, "--threads", 1, "--models", "bert-encoder", "--models", "bert"]
    done = command("bench", "latency", *few, "--json", out)
    assert done.returncode == 0, done.stderr[-4000:]
    numbers = json.loads(out.read_text())
    cells = {(cell["model"], cell["part"]): cell for cell in numbers["cells"]}
    assert set(cells) == {("bert-encoder", "whole"), ("bert", "whole")}
    assert cells["bert", "whole"]["x_bare_cpu"] < 1  # half the tokens
    assert numbers["models"]["bert"]["parameters"] > 1e8 > numbers["models"]["bert-encoder"]["parameters"]


def test_a_gpu_without_bf16_is_not_measured_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    for has_it, left_out in ((True, {"mbsd-onnx"}), (False, {"mbsd-onnx", "mbsd-bf16", "mbsd-compiled-bf16"})):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, answer=has_it: answer)
        assert {name for name in NAMES if not runs_on(name, gpu)} == left_out
    with pytest.raises(UserError, match="--models mbsd-bf16: Tesla V100 has no bf16"):
        make_contestant("mbsd-bf16", gpu, 1, tmp_path)
