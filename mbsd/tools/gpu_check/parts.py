"""The parts of a check: which commands measure which figures."""

from __future__ import annotations

import json
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, TypeGuard

from mbsd.tools.gpu_check.figures import STAGES, Figure, Value, measured
from mbsd.tools.gpu_check.place import NotMeasuredError, Place
from mbsd.tools.gpu_check.runs import Shop, mean_lengths, write_settings
from mbsd.tools.plan.gpus import GPUS
from mbsd.tools.studies.commands import ROOT

BENCH = ("-m", "mbsd.cli.main", "bench")
SANITIZER = "compute-sanitizer"
# Tests of kernels that we launch ourselves: LAMB's fused step and packed attention.
SANITIZED = ("tests/optim/test_lamb.py", "tests/model/test_packed.py")
LATENCY_MODELS = ("mbsd", "bert-encoder", "vilt")
LATENCY_BATCHES = (1, 32)
GPU_JSON = "gpu.json"


def measure_tests(place: Place) -> dict[str, Figure]:
    """All tests marked gpu; a test that fails is a figure, not a failure of the check."""
    report = place.out / "gpu_tests.xml"
    words = ("-m", "pytest", "-m", "gpu", "-q", "-n", 4, f"--junitxml={report}", *gpu_test_files())
    try:
        place.python("gpu_tests", *words, limit=240)
    except NotMeasuredError:
        if not report.exists():  # pytest itself broke off; a failed test leaves its report
            raise
    counts, failed = count_tests(report)
    how = "pytest -m gpu" + (f"; failed: {', '.join(failed)}" if failed else "")
    return {f"gpu_tests_{name}": Figure(counts[name], how) for name in ("passed", "failed", "skipped")}


def measure_sanitizer(place: Place) -> dict[str, Figure]:
    """compute-sanitizer's memcheck over the tests of LAMB and packed attention."""
    if shutil.which(SANITIZER) is None:
        raise NotMeasuredError(f"{SANITIZER} is not installed here")
    words = ("-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *SANITIZED)
    tool = [SANITIZER, "--tool", "memcheck", "--target-processes", "application-only"]
    said = place.run("sanitizer", [*tool, sys.executable, *words], limit=150)
    found = re.search(r"ERROR SUMMARY: (\d+) errors?", said)
    if found is None:
        raise NotMeasuredError(f"{SANITIZER} printed no summary: see logs/sanitizer.out")
    return {
        "sanitizer_errors": Figure(int(found[1]), f"{SANITIZER} --tool memcheck pytest -m gpu {' '.join(SANITIZED)}")
    }


def measure_step_bench(place: Place, shop: Shop) -> dict[str, Figure]:
    """`mbsd bench step`: the packed step against padded ones."""
    batch = 64 if shop.model == "base" else 2
    layers = () if shop.model == "base" else ("--layers", 1)
    words = ("step", "--model", "base", "--lengths", "real", "--batch", batch, "--turns", 10, *layers)
    numbers = _bench(place, words, limit=120)
    figures: dict[str, Figure] = {}
    for stage, found in numbers["models"]["base"]["stages"].items():
        real = found["real"]
        values = {
            "mfu": real["packed"].get("mfu_data_sheet"),
            "x_to_limit": real["to 144"]["x_packed"],
            "x_to_longest": real["to the longest"]["x_packed"],
        }
        figures |= {f"step_{stage}_{name}": _figure(value, words) for name, value in values.items()}
    return figures


def measure_lamb_bench(place: Place, shop: Shop, kind: str | None) -> dict[str, Figure]:
    """`mbsd bench lamb` on one rank; `kind`: the GPU in `mbsd.tools.plan.gpus`, None: it is not known there."""
    layers = 12 if shop.model == "base" else 1
    words = ("lamb", "--ranks", 1, "--turns", 20, "--layers", layers)
    found = _bench(place, words, limit=150)["ranks"]["1"]
    ours, plain = found["Lamb, ZeRO-2"], found["Lamb, no ZeRO"]
    fused = found.get("DeepSpeed's FusedLamb, no ZeRO")
    share = ours["bytes_per_s"] / GPUS[kind].bandwidth if kind is not None else None
    return {
        "lamb_ms": _figure(1e3 * ours["seconds"], words),
        "lamb_x_adamw": _figure(ours.get("x_adamw"), words),
        "lamb_x_loop": _figure(ours.get("x_textbook"), words),
        "lamb_no_zero_ms": _figure(1e3 * plain["seconds"], words),
        "fused_lamb_ms": _figure(
            1e3 * fused["seconds"] if fused else None, words, "its kernel cannot be compiled here"
        ),
        "lamb_bandwidth_share": _figure(share, words, "no data sheet of this GPU is known"),
    }


def measure_loader_bench(place: Place, shop: Shop) -> dict[str, Figure]:
    """`mbsd bench loader` on the synthetic catalogue."""
    size = shop.image_size
    words = ("loader", "--catalog", place.out / "catalog", "--image-size", size, "--workers", 8, "--no-train",
             "--no-epochs", "--turns", 3, "--batch", 64 if shop.model == "base" else 8)  # fmt: skip
    numbers = _bench(place, words, limit=120)
    decoders, loaders = numbers["decoders"], {row["way"]: row["images_per_s"] for row in numbers["loaders"]}
    missing = "DALI is not installed here"
    return {
        "dali_mixed_images_per_s": _figure(decoders.get("dali mixed"), words, missing),
        "dali_cpu_images_per_s": _figure(decoders.get("dali"), words, missing),
        "torchvision_images_per_s": _figure(decoders["torchvision"], words),
        "loader_dali_images_per_s": _figure(loaders.get("dali"), words, missing),
        "loader_torchvision_images_per_s": _figure(loaders["torchvision"], words),
        "loader_plain_images_per_s": _figure(loaders["plain"], words),
    }


def measure_latency_bench(place: Place) -> dict[str, Figure]:
    """`mbsd bench latency` of the models that the docs compare."""
    models = [word for name in LATENCY_MODELS for word in ("--models", name)]
    batches = [word for batch in LATENCY_BATCHES for word in ("--batch", batch)]
    words = ("latency", *batches, *models, "--steps", 50, "--seconds", 3)
    cells = {
        (cell["model"], cell["batch"]): cell
        for cell in _bench(place, words, limit=90)["cells"]
        if cell["part"] == "whole"
    }
    figures: dict[str, Figure] = {}
    for batch in LATENCY_BATCHES:
        values = {
            "mbsd_ms": cells["mbsd", batch]["median_ms"],
            "x_bare": cells["mbsd", batch]["x_bare"],
            "vilt_x_mbsd": cells["vilt", batch]["x_mbsd"],
        }
        figures |= {f"latency_{name}_batch_{batch}": _figure(value, words) for name, value in values.items()}
    return figures


def measure_plan(place: Place, shop: Shop, kind: str | None, figures: dict[str, Figure]) -> dict[str, Figure]:
    """What `mbsd plan` with the measured shares predicts, over what the bf16 runs took.

    Args:
        kind: name of the GPU in `mbsd.tools.plan.gpus`; None: it is not known there.
        figures: of the runs.
    """
    if kind is None:
        raise NotMeasuredError("no data sheet of this GPU is known")
    title, query = mean_lengths(place, shop)
    found: dict[str, Figure] = {}
    for stage in STAGES:
        settings, deepspeed = write_settings(place, shop, "bf16", stage, f"bf16_{stage}")
        answer = place.out / f"plan_{stage}.json"
        words = ("--config", settings, "--deepspeed_config", deepspeed, "--gpu", kind, "--gpus", 1,
                 "--title-tokens", title, "--query-tokens", query, "--measured", place.out / GPU_JSON,
                 "--json", answer, "--data.decoder", "torchvision")  # fmt: skip
        try:
            place.python(f"plan_{stage}", "-m", "mbsd.cli.main", "plan", *words, limit=60)
        except NotMeasuredError as error:
            found |= {f"plan_{what}_{stage}": Figure(None, reason=str(error)) for what in ("memory", "time")}
            continue
        plan = json.loads(answer.read_text(encoding="utf-8"))
        rate, waited, memory = (
            figures[f"bf16_{stage}_{kind}"].value for kind in ("samples_per_s", "data_wait", "memory_gib")
        )
        allocated = (plan["memory"]["total"] - plan["memory"]["reserve"]) / (1 << 30)
        ratios = {
            "time": rate / (1 - waited) / plan["samples_per_s"] if _number(rate) and _number(waited) else None,
            "memory": allocated / memory if _number(memory) else None,
        }
        for what, ratio in ratios.items():
            found[f"plan_{what}_{stage}"] = _figure(ratio, ("plan", *words), "the bf16 run was not measured")
    return found


def _number(value: Value | None) -> TypeGuard[float]:
    return isinstance(value, float)


def gpu_test_files() -> list[str]:
    """Files of tests marked gpu: pytest would import all others too, for nothing."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "mark.gpu" in path.read_text(encoding="utf-8")]


def _bench(place: Place, words: tuple[object, ...], *, limit: float) -> Any:
    name = words[0]
    answer = place.out / f"bench_{name}.json"
    place.python(f"bench_{name}", *BENCH, *words, "--json", answer, limit=limit)
    return json.loads(answer.read_text(encoding="utf-8"))


def _figure(value: Value | None, words: tuple[object, ...], reason: str = "") -> Figure:
    how = ("mbsd " if words[0] == "plan" else "mbsd bench ") + " ".join(
        word.name if isinstance(word, Path) else str(word) for word in words
    )
    return measured(value, how, reason)


def count_tests(report: Path) -> tuple[dict[str, int], list[str]]:
    """Number of tests by result, and the names of those that failed, from pytest's JUnit file."""
    suite = next(ElementTree.parse(report).iter("testsuite"))
    total, failed, errors, skipped = (int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped"))
    bad = failed + errors
    names = [
        f"{case.attrib['classname']}::{case.attrib['name']}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {"passed": total - bad - skipped, "failed": bad, "skipped": skipped}, names
