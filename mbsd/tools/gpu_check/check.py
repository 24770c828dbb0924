"""`mbsd bench gpu`: all parts in turn, within a time limit, into `gpu.json` and `gpu.md`."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbsd.errors import RunFailed, UserError
from mbsd.io.console import say
from mbsd.io.files import replace_text
from mbsd.tools.gpu_check import parts
from mbsd.tools.gpu_check.figures import CLAIMS, Figure
from mbsd.tools.gpu_check.passes import measure_passes
from mbsd.tools.gpu_check.place import NotMeasuredError, Place
from mbsd.tools.gpu_check.report import as_markdown
from mbsd.tools.gpu_check.runs import MODELS, Shop, draw_shop, measure_resume, measure_runs, measure_traces
from mbsd.tools.studies.commands import refuse_without_launchers

GPU_MD = "gpu.md"
NO_DEVICE = "the device computes nothing: its products are wrong"
OWN = ("matmul_share", "bandwidth_share", "launch_seconds")  # what the part "device" measures


@dataclass(frozen=True)
class Check:
    """What is checked.

    Attributes:
        out: folder for the report, logs, settings and runs.
        minutes: when these are over, the rest is "not measured".
        parts: of PARTS; empty: all.
        model: of the runs and benches: base; or tiny, to try the commands.
    """

    out: Path
    minutes: float
    parts: tuple[str, ...] = ()
    model: str = "base"


# Part -> its figures (their names begin so), in the order in which they are measured.
PARTS: dict[str, tuple[str, ...]] = {
    "device": ("computes", "architecture", *OWN),
    "tests": ("gpu_tests_",),  # before all that is timed: where time is short, what is wrong is known
    "runs": ("fp16_", "bf16_"),
    "traces": ("trace_",),
    "passes": ("passes_",),
    "resume": ("resume_", "repeat_"),
    "step": ("step_",),
    "lamb": ("lamb_", "fused_lamb_"),
    "sanitizer": ("sanitizer_",),
    "loader": ("dali_", "torchvision_", "loader_"),
    "plan": ("plan_",),
    "latency": ("latency_",),
}


def check_gpu(check: Check) -> dict[str, Any]:
    """Measure, write `gpu.json` and `gpu.md` after each part, and return what gpu.json holds.

    Raises:
        UserError: no GPU is there, an unknown part or model, `out` is in use, or there are no launchers here.
        RunFailed: the check itself failed in a part; the report holds all others.
    """
    refuse_without_launchers()
    for option, given, known in (("--part", check.parts, PARTS), ("--model", (check.model,), MODELS)):
        for name in given:
            if name not in known:
                raise UserError(f"{option} {name}: expected {' or '.join(known)}")
    if check.out.exists() and any(check.out.iterdir()):
        raise UserError(f"{check.out}: already there and not empty; remove it or choose another --out")
    out = check.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    place = Place(out, time.monotonic() + 60 * check.minutes)
    report = Report(place, check)
    device = report.device()
    # DALI asks the driver itself for the GPU, and finds none where only torch's libraries are given one.
    decoder = "auto" if device["computes"] else "torchvision"
    shop = Shop(decoder=decoder)
    if check.model != "base":
        shop = Shop(items=200, image_size=64, model=check.model, decoder=decoder)
    for name, work in _works(place, shop, report, device).items():
        if name not in (check.parts or PARTS):
            continue
        say(f"{name}: {place.left:.0f} s left")
        report.take(name, work)
        report.write()
    if report.broken:
        raise RunFailed(f"a fault of the check itself in {', '.join(report.broken)}: the tracebacks are above")
    return report.tree()


class Report:
    """The figures so far."""

    def __init__(self, place: Place, check: Check) -> None:
        self.place, self.check = place, check
        self.facts: dict[str, Any] = {}
        self.figures: dict[str, Figure] = {}
        self.seconds: dict[str, float] = {}
        self.broken: list[str] = []  # parts in which the check itself failed

    def device(self) -> dict[str, Any]:
        """Measure the device, in a process of its own."""
        began = time.monotonic()
        how = "python -m mbsd.tools.gpu_check.device"
        try:
            said = self.place.python("device", "-m", "mbsd.tools.gpu_check.device", limit=90)
        except NotMeasuredError as error:
            raise UserError(f"no GPU could be measured ({error}); see {self.place.out}/logs/device.log") from error
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
        self.facts = {key: found[key] for key in ("gpu", "torch", "cuda", "half")}
        name = f"sm_{found['gpu']['capability'][0]}{found['gpu']['capability'][1]}"
        self.figures["computes"] = Figure(found["computes"], how)
        self.figures["architecture"] = Figure(
            name, how, "" if name in found["architectures"] else f"torch was built for {found['architectures']}"
        )
        reason = "no data sheet of this GPU is known" if found["computes"] else NO_DEVICE
        for key in OWN:
            self.figures[key] = Figure(found[key], how, "" if found[key] is not None else reason)
        self.seconds["device"] = time.monotonic() - began
        self.write()
        return found

    def take(self, part: str, work: Callable[[], dict[str, Figure]]) -> None:
        """Add a part's figures; where it fails, its reason."""
        began = time.monotonic()
        try:
            found = work()
        except NotMeasuredError as error:
            found = {name: Figure(None, reason=str(error)) for name in _names_of(part)}
        except Exception as error:
            # A fault of the check itself: GPU time is dear, so the other parts are measured all the same.
            traceback.print_exc()
            self.broken.append(part)
            why = f"a fault of the check: {type(error).__name__}: {error}"
            found = {name: Figure(None, reason=why) for name in _names_of(part)}
        if not self.figures["computes"].value:
            for name in found:
                if CLAIMS[name].computed and found[name].value is not None:
                    found[name] = dataclasses.replace(found[name], value=None, reason=NO_DEVICE)
        self.figures |= found
        self.seconds[part] = time.monotonic() - began

    def tree(self) -> dict[str, Any]:
        """What gpu.json holds: facts, commands, and every claim with its figure or the reason why there is none."""
        figures = {}
        for name, claim in CLAIMS.items():
            figure = self.figures.get(name, Figure(None, reason="its part was not run"))
            figures[name] = {
                "value": figure.value, "unit": claim.unit, "claim": claim.says, "page": claim.page,
                "how": figure.how, "reason": figure.reason,
            }  # fmt: skip
        return {
            **self.facts,
            "model": self.check.model,
            "seconds": {part: round(seconds, 1) for part, seconds in self.seconds.items()},
            "commands": self.place.commands,
            "figures": figures,
        }

    def write(self) -> None:
        """Write gpu.json and gpu.md."""
        tree = self.tree()
        replace_text(self.place.out / parts.GPU_JSON, json.dumps(tree, indent=1) + "\n")
        replace_text(self.place.out / GPU_MD, as_markdown(tree))


def _works(
    place: Place, shop: Shop, report: Report, device: dict[str, Any]
) -> dict[str, Callable[[], dict[str, Figure]]]:
    @functools.cache
    def drawn() -> Shop:
        draw_shop(place, shop)
        return shop

    def with_shop(work: Callable[[Place, Shop], dict[str, Figure]]) -> Callable[[], dict[str, Figure]]:
        return lambda: work(place, drawn())

    from mbsd.tools.gpu_check.device import kind_of

    kind = kind_of(device["gpu"]["name"])
    return {
        "tests": lambda: parts.measure_tests(place),
        "runs": with_shop(measure_runs),
        "traces": with_shop(measure_traces),
        "passes": with_shop(measure_passes),
        "resume": with_shop(measure_resume),
        "step": lambda: parts.measure_step_bench(place, shop),
        "lamb": lambda: parts.measure_lamb_bench(place, shop, kind),
        "sanitizer": lambda: parts.measure_sanitizer(place),
        "loader": with_shop(parts.measure_loader_bench),
        "plan": lambda: parts.measure_plan(place, shop, kind, report.figures),
        "latency": lambda: parts.measure_latency_bench(place),
    }


def _names_of(part: str) -> Iterator[str]:
    return (name for name in CLAIMS if name.startswith(PARTS[part]))
