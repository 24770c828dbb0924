"""`mbsd bench gpu`: what can be known of it without a GPU, and what it makes of a device that computes nothing."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mbsd.config.deepspeed import BatchSizes
from mbsd.config.deepspeed import precision as precision_of
from mbsd.config.parse import parse
from mbsd.config.run import PretrainConfig
from mbsd.tools.gpu_check.check import PARTS, Check, Report
from mbsd.tools.gpu_check.figures import CLAIMS, RUNS, Figure, measured
from mbsd.tools.gpu_check.parts import count_tests, gpu_test_files
from mbsd.tools.gpu_check.passes import measure_passes
from mbsd.tools.gpu_check.place import NotMeasuredError, Place
from mbsd.tools.gpu_check.runs import Shop, draw_shop, write_settings
from mbsd.tools.gpu_check.traces import traced
from mbsd.tools.plan.measured import FIGURES
from tests.fake_cuda.build import why_not
from tests.ranks import ROOT, command


def test_every_claim_is_of_one_part_and_of_a_page_that_exists() -> None:
    for name, claim in CLAIMS.items():
        assert sum(name.startswith(prefixes) for prefixes in PARTS.values()) == 1, name
        assert (ROOT / claim.page).is_file()
    assert set(FIGURES) <= set(CLAIMS), "a plan reads what is measured"


def test_without_a_gpu_it_ends_in_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mbsd.cli.main", "bench", "gpu", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no GPU could be measured (exit code") and done.stderr.count("\n") == 1


def test_an_unknown_part_and_a_folder_in_use_are_refused(tmp_path: Path) -> None:
    done = command("bench", "gpu", "--out", tmp_path, "--part", "kitchen")
    assert done.returncode == 2 and "--part kitchen: expected device or tests or runs or traces" in done.stderr
    (tmp_path / "mine").touch()
    done = command("bench", "gpu", "--out", tmp_path)
    assert done.returncode == 2 and "already there and not empty" in done.stderr


def test_a_command_that_fails_or_hangs_gives_its_reason(tmp_path: Path) -> None:
    place = Place(tmp_path, deadline=float("inf"))
    with pytest.raises(NotMeasuredError, match=r"exit code 1: ValueError: no such GPU \(logs/bad.log\)"):
        place.python("bad", "-c", "raise ValueError('no such GPU')", limit=60)
    with pytest.raises(NotMeasuredError, match="killed after"):
        place.python("slow", "-c", "import time; time.sleep(60)", limit=6)
    assert place.python("good", "-c", "print(6 * 7)", limit=60) == "42\n"
    assert {name: found["exit_code"] for name, found in place.commands.items()} == {"bad": 1, "slow": None, "good": 0}
    place.deadline = 0.0
    with pytest.raises(NotMeasuredError, match="no time was left"):
        place.python("late", "-c", "", limit=60)


def test_runs_that_are_started_at_once_share_no_settings(tmp_path: Path) -> None:
    place, shop = Place(tmp_path, deadline=float("inf")), Shop(model="tiny")
    for precision, stage in RUNS:
        for run in (f"{precision}_{stage}", f"{precision}_{stage}_again"):
            settings, deepspeed = write_settings(place, shop, precision, stage, run)
            config, ds_config = parse(PretrainConfig, ["--config", str(settings), "--deepspeed_config", str(deepspeed)])
            assert (Path(config.run.dir).name, config.stage) == (run, stage)
            assert ds_config.sizes(1) == BatchSizes(shop.micro_batches[stage], shop.micro_batches[stage], 1)
            assert precision_of(ds_config.tree) == precision
    assert len(list((tmp_path / "settings").iterdir())) == 4 * len(RUNS)


def test_a_fault_of_the_check_in_one_part_leaves_the_others(tmp_path: Path) -> None:
    report = Report(Place(tmp_path, deadline=float("inf")), Check(tmp_path, 1.0))
    report.figures["computes"] = Figure(True)
    report.take("plan", lambda: {"plan_time_masked": Figure(1 / 0)})
    report.take("sanitizer", lambda: {"sanitizer_errors": Figure(0)})
    assert report.broken == ["plan"] and report.figures["sanitizer_errors"].value == 0
    assert report.figures["plan_memory_masked"].reason == "a fault of the check: ZeroDivisionError: division by zero"


def test_what_is_no_number_is_not_measured() -> None:
    assert measured(float("nan"), "here") == Figure(None, "here", "it came out as nan")
    assert measured(None, "here", "no DALI") == Figure(None, "here", "no DALI")
    assert measured(2.5, "here", "no DALI") == Figure(2.5, "here")


def test_tests_are_counted_and_those_that_fail_are_named(tmp_path: Path) -> None:
    (tmp_path / "test_three.py").write_text(
        "import pytest\ndef test_good(): pass\ndef test_bad(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='no GPU')\ndef test_left_out(): pass\n"
    )
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", f"--junitxml={tmp_path}/r.xml"]
    assert subprocess.run([*words, str(tmp_path)], cwd=tmp_path, capture_output=True).returncode == 1
    counts, failed = count_tests(tmp_path / "r.xml")
    assert counts == {"passed": 1, "failed": 1, "skipped": 1} and failed == ["test_three::test_bad"]


def test_the_tests_of_gpus_are_found() -> None:
    assert {"tests/optim/test_lamb.py", "tests/model/test_packed.py"} <= set(gpu_test_files())
    assert "tests/docs/test_pages.py" not in gpu_test_files()


@pytest.mark.distributed
def test_two_passes_are_those_of_the_stage(tmp_path: Path) -> None:
    """The part "passes" on a CPU, which has bf16 too: the same bits twice, and rounding between one pass and two."""
    place, shop = Place(tmp_path, deadline=float("inf")), Shop(items=60, image_size=64, model="tiny")
    draw_shop(place, shop)
    figures = measure_passes(place, shop, ["bf16"])
    assert figures["passes_bf16_same"].value is True, figures["passes_bf16_same"].reason
    deviation = figures["passes_bf16_deviation"].value
    assert isinstance(deviation, float) and deviation < 0.02
    metrics = [json.loads(line) for line in (tmp_path / "runs/bf16_passes_two/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics if "samples_per_s" in line] == [1, 2, 3, 4, 5, 6]


def event(name: str, cat: str, tid: int = 1, **more: Any) -> dict[str, Any]:
    return {"name": name, "cat": cat, "tid": tid, "ts": 0, **more}


def test_waits_copies_and_kernels_are_read_from_a_trace(tmp_path: Path) -> None:
    events = [
        *(event(f"ProfilerStep#{n}", "user_annotation", dur=5) for n in (6, 7)),
        *(event("cudaStreamSynchronize", "cuda_runtime") for _ in range(4)),
        event("cudaStreamSynchronize", "cuda_runtime", tid=2),  # the loader's thread may wait
        event("cudaDeviceSynchronize", "cuda_runtime"),
        event("cudaMemcpyAsync", "cuda_runtime"),
        event("Memcpy HtoD (Pageable -> Device)", "gpu_memcpy"),
        event("Memcpy HtoD (Pinned -> Device)", "gpu_memcpy"),
        event("void pytorch_flash::flash_fwd_kernel<Traits<64>, true>(Params)", "kernel"),
        event("void pytorch_flash::flash_fwd_kernel<Traits<128>, true>(Params)", "kernel"),
        event("void at::native::vectorized_elementwise_kernel<4>(int)", "kernel"),
    ]
    (tmp_path / "profile").mkdir()
    with gzip.open(tmp_path / "profile" / "rank-0000.pt.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    how = "run.profile=2; 0.5 cudaDeviceSynchronize; 2 cudaStreamSynchronize"
    assert traced(tmp_path) == {
        "host_waits": Figure(2.5, how),
        "pageable_copies": Figure(0.5, how),
        "launches": Figure(1.5, how),
        "attention": Figure("pytorch_flash::flash_fwd_kernel", how),
    }
    assert traced(tmp_path / "none")["launches"].reason == "the run wrote no trace"


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_make_gpu_finds_out_a_device_that_computes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-m", "tests.fake_cuda.run", "--capability", "90", "--"]
    words += ["make", "gpu", f"GPU_OUT={out}", "PARTS=device", f"GPU_PYTHON={sys.executable}"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    tree = json.loads((out / "gpu.json").read_text())
    assert tree["gpu"]["capability"] == [9, 0] and list(tree["figures"]) == list(CLAIMS)
    assert tree["figures"]["computes"]["value"] is False and tree["figures"]["architecture"]["value"] == "sm_90"
    for name in FIGURES:
        found = tree["figures"][name]
        assert found["value"] is None and found["reason"]
    page = (out / "gpu.md").read_text()
    assert page.count("not measured") == sum(found["value"] is None for found in tree["figures"].values())
