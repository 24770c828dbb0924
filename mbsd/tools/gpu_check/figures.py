"""What `mbsd bench gpu` finds out: each figure, what the docs say that it backs, and where they say it."""

from __future__ import annotations

import math
from dataclasses import dataclass

Value = float | int | bool | str

PRECISIONS = ("fp16", "bf16")
STAGES = ("masked", "matching", "contrastive")
RUNS = tuple((precision, stage) for precision in PRECISIONS for stage in STAGES)


@dataclass(frozen=True)
class Claim:
    """A statement of the docs about GPUs.

    Attributes:
        says: the statement that the figure backs or refutes.
        page: file of the docs that states it.
        unit: of the figure; "" where it is a share, a ratio or a count.
        computed: the figure means something only on a device that computes.
    """

    says: str
    page: str
    unit: str = ""
    computed: bool = True


@dataclass(frozen=True)
class Figure:
    """One figure, measured or not.

    Attributes:
        value: None: not measured.
        how: the command or the way it was measured.
        reason: why there is no value.
    """

    value: Value | None
    how: str = ""
    reason: str = ""


def measured(value: Value | None, how: str, reason: str = "") -> Figure:
    """A figure; `reason` says why the value is None. A value that is no number, or infinite, is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return Figure(None, how, f"it came out as {value}")
    return Figure(value, how, reason if value is None else "")


PLAN, GPU, INTERNALS, CATALOGUE = "docs/plan.md", "docs/gpu.md", "docs/internals.md", "docs/catalogue.md"
MEASUREMENTS = "docs/measurements.md"


def _run_claims(precision: str, stage: str) -> dict[str, Claim]:
    run = f"{precision} {stage}"
    return {
        f"{precision}_{stage}_samples_per_s": Claim(f"speed of a {run} run of BERT-base", MEASUREMENTS, "samples/s"),
        f"{precision}_{stage}_mfu": Claim(f"share of the data sheet's peak of a {run} run", MEASUREMENTS),
        f"{precision}_{stage}_data_wait": Claim(f"share of a {run} run's time that waits for data", MEASUREMENTS),
        f"{precision}_{stage}_memory_gib": Claim(f"most that torch held in a {run} run", MEASUREMENTS, "GiB"),
        f"{precision}_{stage}_loss_first": Claim(f"loss of a {run} run at its first log", MEASUREMENTS),
        f"{precision}_{stage}_loss_last": Claim(f"loss of a {run} run at its last step", MEASUREMENTS),
        f"trace_{precision}_{stage}_host_waits": Claim(f"waits of the training thread in a step of a {run} run", GPU),
        f"trace_{precision}_{stage}_pageable_copies": Claim(f"pageable copies in a step of a {run} run", GPU),
        f"trace_{precision}_{stage}_launches": Claim(f"kernels of a step of a {run} run", GPU),
        f"trace_{precision}_{stage}_attention": Claim(f"attention kernels of a {run} run", GPU),
        f"{precision}_{stage}_skipped_steps": Claim(f"steps that a {run} run skipped for overflow", MEASUREMENTS),
    }


def _pass_claims(precision: str) -> dict[str, Claim]:
    run = f"{precision} contrastive run"
    return {
        f"passes_{precision}_same": Claim(f"the second pass of a {run} has the bits of the first", GPU),
        f"passes_{precision}_deviation": Claim(
            f"a {run} in two passes deviates by rounding only from one in one pass: largest of a loss", GPU
        ),
    }


# Figure -> claim, in the order of the report.
CLAIMS: dict[str, Claim] = {
    "computes": Claim("the device computes right products", GPU, computed=False),
    "architecture": Claim("torch holds kernels for this GPU", GPU, computed=False),
    "matmul_share": Claim("share of the peak that a layer's matrix products reach", PLAN),
    "bandwidth_share": Claim("share of the memory bandwidth that element-wise kernels reach", PLAN),
    "launch_seconds": Claim("host time of a kernel in eager PyTorch", PLAN, "s"),
    "gpu_tests_passed": Claim("tests marked gpu that pass", GPU),
    "gpu_tests_failed": Claim("tests marked gpu that fail", GPU),
    "gpu_tests_skipped": Claim("tests marked gpu that are skipped", GPU),
    "sanitizer_errors": Claim("errors that compute-sanitizer finds in LAMB and packed attention", GPU),
    **{name: claim for precision, stage in RUNS for name, claim in _run_claims(precision, stage).items()},
    **{name: claim for precision in PRECISIONS for name, claim in _pass_claims(precision).items()},
    "resume_deviation": Claim("a resumed run deviates by rounding only: largest relative deviation of a loss", GPU),
    "resume_deviation_deterministic": Claim("with run.deterministic a resumed run has the same losses", GPU),
    "repeat_deviation_deterministic": Claim("with run.deterministic a run repeated has the same losses", GPU),
    **{
        f"plan_{what}_{stage}": Claim(f"predicted / measured {name} of a bf16 {stage} run", PLAN)
        for stage in STAGES
        for what, name in (("memory", "activations and working memory"), ("time", "compute time of a step"))
    },
    **{
        f"step_{stage}_{name}": Claim(f"a {stage} step {says}", MEASUREMENTS)
        for stage in ("masked", "matching")
        for name, says in (
            ("mfu", "packed: share of the data sheet's peak"),
            ("x_to_limit", "padded to 144 tokens takes that many times the packed one"),
            ("x_to_longest", "padded to the longest takes that many times the packed one"),
        )
    },
    "lamb_ms": Claim("LAMB's step under ZeRO-2, BERT-base", INTERNALS, "ms"),
    "lamb_x_adamw": Claim("LAMB's step over torch's fused AdamW", INTERNALS),
    "lamb_x_loop": Claim("LAMB's step over a loop over tensors", INTERNALS),
    "lamb_no_zero_ms": Claim("LAMB's step without ZeRO", INTERNALS, "ms"),
    "fused_lamb_ms": Claim("DeepSpeed's FusedLamb without ZeRO", INTERNALS, "ms"),
    "lamb_bandwidth_share": Claim("share of the memory bandwidth that LAMB's step reaches", PLAN),
    "dali_mixed_images_per_s": Claim("DALI decodes on the GPU", CATALOGUE, "images/s"),
    "dali_cpu_images_per_s": Claim("DALI decodes on the CPU", CATALOGUE, "images/s"),
    "torchvision_images_per_s": Claim("torchvision decodes in one process", CATALOGUE, "images/s"),
    "loader_dali_images_per_s": Claim("whole micro-batches with DALI", CATALOGUE, "images/s"),
    "loader_torchvision_images_per_s": Claim("whole micro-batches with torchvision", CATALOGUE, "images/s"),
    "loader_plain_images_per_s": Claim("whole micro-batches of a loader written by hand", CATALOGUE, "images/s"),
    **{
        f"latency_{name}_batch_{batch}": Claim(f"{says} at batch {batch}", MEASUREMENTS, unit)
        for batch in (1, 32)
        for name, says, unit in (
            ("mbsd_ms", "a forward of MBSD", "ms"),
            ("x_bare", "MBSD over a bare BERT encoder with as many tokens", ""),
            ("vilt_x_mbsd", "ViLT over MBSD", ""),
        )
    },
}  # fmt: skip
