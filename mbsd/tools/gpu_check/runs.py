"""Training runs of a check: all stages in fp16 and bf16 through `launchers/pretrain.py`, and resumed ones."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mbsd.checkpoint.store import name_of
from mbsd.config.run_files import DONE
from mbsd.io.files import replace_text
from mbsd.tools.gpu_check.figures import RUNS, Figure, measured
from mbsd.tools.gpu_check.place import NotMeasuredError, Place
from mbsd.tools.gpu_check.traces import KINDS, traced
from mbsd.tools.studies.commands import ROOT
from mbsd.training.profile import WAIT, WARM_UP

STEPS, LOG_EVERY = 60, 10
RESUME_AT = STEPS // 2
TRACED = 3
TRACED_RUN = ("--run.max_steps", WAIT + WARM_UP + TRACED + 1, "--run.profile", TRACED)
LIMIT = 90.0  # seconds of a run
MICRO_BATCH = {"masked": 128, "matching": 64, "contrastive": 512}  # as the V100 JSONs have them
TINY_BATCH = {"masked": 8, "matching": 4, "contrastive": 8}
DS_CONFIGS = {
    ("fp16", "masked"): "v100x16_stage1",
    ("fp16", "matching"): "v100x16_stage2",
    ("fp16", "contrastive"): "v100x16_contrastive",
    ("bf16", "masked"): "h100x8_stage1",
    ("bf16", "matching"): "h100x8_stage2",
    ("bf16", "contrastive"): "h100x8_contrastive",
}
Losses = dict[int, float]  # logged step -> loss
RATES = ("samples_per_s", "mfu", "data_wait", "memory_gib")
MODELS: dict[str, dict[str, Any]] = {
    "base": {"vocab_size": 4000},
    "tiny": {
        "vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 128, "patchify_channels": [4, 8, 16],
    },
}  # fmt: skip


@dataclass(frozen=True)
class Shop:
    """What the runs train on, and how large the model is.

    Attributes:
        items: of the synthetic catalogue.
        image_size: pixels of a picture's side.
        model: of MODELS.
        decoder: as data.decoder.
    """

    items: int = 3000
    image_size: int = 224
    model: str = "base"
    decoder: str = "auto"

    @property
    def micro_batches(self) -> Mapping[str, int]:
        """Samples of a micro-batch, by stage; the tiny model is there to try the commands."""
        return MICRO_BATCH if self.model == "base" else TINY_BATCH


def draw_shop(place: Place, shop: Shop) -> None:
    """A synthetic catalogue in `out/catalog` with its keys, and the pairs mined from its log in `out/pairs.parquet`.

    Raises:
        NotMeasuredError: a command failed.
    """
    raw, catalog = place.out / "shop", place.out / "catalog"
    main = ("-m", "mbsd.cli.main")
    synth = ("catalog", "synth", raw, "--items", shop.items, "--image-side", shop.image_size, "--language", "en")
    place.python("synth", *main, *synth, limit=LIMIT)
    build = ("catalog", "build", raw / "items.jsonl", "--images", raw / "images", "--out", catalog)
    place.python("build", *main, *build, limit=LIMIT)
    place.python("keys", *main, "catalog", "keys", catalog, limit=LIMIT)
    mine = ("pairs", "mine", "--log", raw / "log.parquet", "--catalog", catalog, "--out", place.out / "pairs.parquet")
    place.python("mine", *main, *mine, limit=LIMIT)


def write_settings(
    place: Place, shop: Shop, precision: str, stage: str, run: str, micro_steps: int = 1
) -> tuple[Path, Path]:
    """The YAML and DeepSpeed's JSON of a run: that of `ds_configs/`, its whole batch one micro-batch of one GPU, or the
    same batch in more micro-steps.

    Each run has files of its own, since some are started at once.
    """
    folder = place.out / "settings"
    tree: dict[str, Any] = {
        "stage": stage,
        "run": {
            "dir": str(place.out / "runs" / run), "max_steps": STEPS, "log_every": LOG_EVERY,
            "validate_every": 0, "validate_samples": 256, "save_every": RESUME_AT,
        },
        "data": {"catalog": str(place.out / "catalog"), "image_size": shop.image_size, "decoder": shop.decoder,
                 "num_workers": min(8, os.cpu_count() or 1)},
        "model": MODELS[shop.model],
    }  # fmt: skip
    if stage == "matching":
        tree["data"]["table"] = str(place.out / "pairs.parquet")
    settings, deepspeed = (folder / f"{run}.{ending}" for ending in ("yaml", "json"))
    replace_text(settings, yaml.safe_dump(tree, sort_keys=False))
    source = json.loads((ROOT / "ds_configs" / f"{DS_CONFIGS[precision, stage]}.json").read_text(encoding="utf-8"))
    batch = shop.micro_batches[stage]
    cut = {"train_batch_size": batch, "train_micro_batch_size_per_gpu": batch // micro_steps}
    replace_text(deepspeed, json.dumps(source | cut, indent=2) + "\n")
    return settings, deepspeed


def measure_runs(place: Place, shop: Shop) -> dict[str, Figure]:
    """Sixty steps of each stage in each precision; speed is the median of all logs but the first."""
    figures: dict[str, Figure] = {}
    for precision, stage in RUNS:
        name = f"{precision}_{stage}"
        try:
            lines = train(place, shop, precision, stage, name)
        except NotMeasuredError as error:
            kinds = (*RATES, "loss_first", "loss_last", "skipped_steps")
            figures |= {f"{name}_{kind}": Figure(None, reason=str(error)) for kind in kinds}
            continue
        how = f"{STEPS} steps of launchers/pretrain.py, micro-batch {shop.micro_batches[stage]}"
        for kind in RATES:
            values = [line[kind] for line in lines[1:] if kind in line]
            reason = "" if values else "not in the run's metrics.jsonl"
            figures[f"{name}_{kind}"] = measured(statistics.median(values) if values else None, how, reason)
        figures[f"{name}_loss_first"] = measured(lines[0]["loss"], how)
        figures[f"{name}_loss_last"] = measured(lines[-1]["loss"], how)
        figures[f"{name}_skipped_steps"] = Figure(lines[-1].get("skipped_steps", 0.0), how)
    return figures


def measure_traces(place: Place, shop: Shop) -> dict[str, Figure]:
    """Waits, copies and kernels of a few steps of each stage in each precision; the runs share the GPU."""

    def trace(precision: str, stage: str) -> dict[str, Figure]:
        name = f"{precision}_{stage}"
        try:
            train(place, shop, precision, stage, f"{name}_traced", *TRACED_RUN)
        except NotMeasuredError as error:
            return {f"trace_{name}_{kind}": Figure(None, reason=str(error)) for kind in KINDS}
        return {f"trace_{name}_{kind}": found for kind, found in traced(place.out / "runs" / f"{name}_traced").items()}

    with ThreadPoolExecutor(len(RUNS)) as pool:
        found = list(pool.map(trace, *zip(*RUNS, strict=True)))
    return {name: figure for figures in found for name, figure in figures.items()}


def measure_resume(place: Place, shop: Shop) -> dict[str, Figure]:
    """Losses of a run that is resumed in its middle, and of one that is repeated, against those of one left alone.

    The largest relative deviation of a logged loss behind the middle; 0: bit for bit, as far as losses are logged.
    Runs that do not need each other share the GPU: nothing is timed here.
    """
    alone, exact = "bf16_masked", "bf16_masked_deterministic"
    deterministic = ("--run.deterministic", "true")
    with ThreadPoolExecutor(3) as pool:

        def start(name: str, *words: object) -> Future[Losses]:
            return pool.submit(_losses, place, shop, name, *words)

        def resumed(of: str, *words: object) -> Future[Losses]:
            checkpoint = place.out / "runs" / of / "checkpoints" / name_of(RESUME_AT)
            return start(f"{of}_resumed", "--run.resume", checkpoint, *words)

        first, whole, again = start(alone), start(exact, *deterministic), start(f"{exact}_again", *deterministic)
        wait([first, whole])
        pairs = {
            "resume_deviation": (resumed(alone), first),
            "resume_deviation_deterministic": (resumed(exact, *deterministic), whole),
            "repeat_deviation_deterministic": (again, whole),
        }
        return {name: _deviation(*pair) for name, pair in pairs.items()}


def mean_lengths(place: Place, shop: Shop) -> tuple[int, int]:
    """Mean tokens of titles and of queries, without specials, from the tokens of a sample of the bf16 runs.

    Raises:
        NotMeasuredError: one of them has not ended.
    """
    masked, matching = (_tokens(place, stage) for stage in ("masked", "matching"))
    patches = (shop.image_size // 32) ** 2
    title = masked - patches - 2  # [CLS] title [SEP] patches
    # The views of matching: [CLS] query [SEP] title [SEP] patches, the same without patches, and without title.
    query = (matching - 2 * patches - 2 * title - 8) / 3
    return round(title), max(1, round(query))


def _tokens(place: Place, stage: str) -> float:
    folder = place.out / "runs" / f"bf16_{stage}"
    if not (folder / DONE).exists():
        raise NotMeasuredError(f"the bf16 {stage} run has not ended")
    lines = _training_lines(folder)
    return statistics.fmean(line["tokens_per_s"] / line["samples_per_s"] for line in lines)


def _deviation(one: Future[Losses], other: Future[Losses]) -> Figure:
    how = f"bf16 masked, steps {RESUME_AT + LOG_EVERY} to {STEPS}"
    try:
        found, expected = one.result(), other.result()
    except NotMeasuredError as error:
        return Figure(None, how, str(error))
    steps = [step for step in expected if step > RESUME_AT]
    return measured(max(_apart(found[step], expected[step]) for step in steps), how)


def _apart(loss: float, expected: float) -> float:
    """The relative difference; 0 where both are the same, also where both are 0."""
    return abs(loss - expected) / max(abs(expected), 1e-30) if loss != expected else 0.0


def _losses(place: Place, shop: Shop, name: str, *words: object) -> Losses:
    return {line["step"]: line["loss"] for line in train(place, shop, "bf16", "masked", name, *words)}


def train(
    place: Place, shop: Shop, precision: str, stage: str, name: str, *words: object, micro_steps: int = 1
) -> list[dict[str, Any]]:
    """The training lines of a run's metrics.jsonl; of the run that is there, where it has ended well.

    Raises:
        NotMeasuredError: it failed.
    """
    settings, deepspeed = write_settings(place, shop, precision, stage, name, micro_steps)
    folder = place.out / "runs" / name
    if not (folder / DONE).exists():
        launcher = ("launchers/pretrain.py", "--config", settings, "--deepspeed_config", deepspeed)
        place.python(name, *launcher, *words, limit=LIMIT)
    return _training_lines(folder)


def _training_lines(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "samples_per_s" in line]
