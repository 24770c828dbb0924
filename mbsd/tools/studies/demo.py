"""`mbsd demo`: the whole story on a synthetic catalogue, by the commands that a user would type."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mbsd.config.run_files import DONE
from mbsd.errors import UserError
from mbsd.io.files import replace_text
from mbsd.io.settings_text import read_yaml
from mbsd.tools.studies.commands import ROOT, Command, LaunchConfig, in_clone, tool
from mbsd.tools.studies.runner import start_runner
from mbsd.tools.studies.settings_files import same_settings, write_deepspeed
from mbsd.tools.studies.shop import ShopConfig, shop_below, shop_commands

NUM_ITEMS = 4800
# The models that are compared: name in the table -> the pre-trained run that it starts from.
MODELS = {"scratch": None, "pre-trained, no SDMI": "stage2_no_sdmi", "pre-trained with SDMI": "stage2"}
# Steps of the demo: enough to tell the three models apart.
STAGE2_STEPS = 340
FINETUNE_STEPS = 360
# Of the runs after stage 1, by the name of DeepSpeed's JSON: smaller batches than the file has, so that there are more
# steps in the same time, at a lower rate; and one process has nothing to cut for ZeRO.
RUNS = {"cpu_stage2": (128, 7e-4), "cpu_finetune": (64, 3e-4)}  # batch size, learning rate
# The convolutions of the runs after stage 1 learn at three times the rate: in so few steps a picture's colours and
# shapes are hardly learned at the rate of a text side that has been pre-trained (docs/recipes.md).
PICTURES = ("--optim.image", 3.0)
# Row 6 of Table 6: the full view's loss alone.
NO_SDMI = ("--sdmi.unimodal_losses", "false", "--sdmi.distillation", "false")


def run_demo(out: Path, *, seed: int, ranks: int) -> None:
    """Draw a shop, build and mine it, pre-train in two stages with and without SDMI, fine-tune, evaluate, tabulate.

    Everything lands below `out`, each command's output in `out/logs`. A demo that was interrupted is resumed.

    Raises:
        UserError: `out` holds something else or a demo with another seed, or this installation has no `launchers/`.
    """
    if out.exists() and any(out.iterdir()) and not (out / "settings/demo.yaml").exists():
        raise UserError(f"{out}: already there and not empty; remove it or choose another --out")
    started = time.monotonic()
    runner = start_runner(out, LaunchConfig(cpu_ranks=ranks), jobs=ranks)
    same_settings(out, "demo", {"seed": seed}, "--out")
    for name, (batch_size, rate) in RUNS.items():
        given = ROOT / f"ds_configs/{name}.json"
        write_deepspeed(_deepspeed_file(out, name), given, batch_size, rate, {"zero_optimization.stage": 0})
    runner.run(demo_commands(out, seed, ranks))
    tabulate(runner.console, out)
    runner.console.print(f"{time.monotonic() - started:.0f} s. Curves: {tool('tensorboard')} --logdir {out}")


def demo_commands(out: Path, seed: int, ranks: int) -> list[Command]:
    """All commands, in order.

    Stage 1 starts through `deepspeed` on all ranks, as the README's commands do. The others are one process each, as
    many at a time as there are ranks: with a model this small ranks would wait for each other, and start, for longer
    than they save.
    """
    alone = LaunchConfig("python", cpu_ranks=1)
    shop = shop_below(out)

    def run(
        name: str, launcher: str, config: str, ds_config: str, *words: object, after: tuple[str, ...] | None = None
    ) -> Command:
        words = (
            "--config", in_clone(f"launchers/configs/{config}.yaml"),
            "--deepspeed_config",
            _deepspeed_file(out, ds_config) if ds_config in RUNS else in_clone(f"ds_configs/{ds_config}.json"),
            "--run.dir", out / name, "--run.seed", seed, "--data.catalog", shop.catalog, *words,
            *(PICTURES if ds_config in RUNS else ()),
        )  # fmt: skip
        return Command(name, out / name / DONE, words, launcher, None if name == "stage1" else alone, after)

    commands = shop_commands(out, ShopConfig(NUM_ITEMS, seed))
    commands.append(run("stage1", "pretrain", "tiny_stage1", "cpu_stage1"))
    for name, words in (("stage2", ()), ("stage2_no_sdmi", NO_SDMI)):
        start = ("--data.table", shop.pairs, "--run.init_from", out / "stage1", "--run.max_steps", STAGE2_STEPS)
        commands.append(run(name, "pretrain", "tiny_stage2", "cpu_stage2", *start, *words, after=("stage1",)))
    for index, source in enumerate(MODELS.values()):
        name = f"finetune{index}"
        weights = ("--run.init_from", out / source) if source else drawn_words(out / "stage1")
        tags, steps = ("--data.table", shop.attributes), ("--run.max_steps", FINETUNE_STEPS)
        after = (source or "stage1",)
        commands.append(run(name, "finetune", "tiny_attributes", "cpu_finetune", *tags, *weights, *steps, after=after))
        scores = _scores(out, index)
        model = ("--model", out / name, "--out", scores, "--data.catalog", shop.catalog, *tags,
                 "--data.image_size", 64, "--data.num_workers", 0, "--bootstrap", 0)  # fmt: skip
        commands.append(Command(f"evaluate{index}", scores, model, "evaluate", alone, after=(name,)))
    return commands


def drawn_words(stage1: Path) -> tuple[object, ...]:
    """Options of a fine-tuning without pre-training: weights are drawn in stage 1's sizes, with its tokenizer."""
    model = read_yaml(ROOT / "launchers/configs/tiny_stage1.yaml")["model"]
    sizes = [word for name, value in model.items() for word in (f"--model.{name}", json.dumps(value))]
    return "--run.init_from", "null", "--data.tokenizer", stage1 / "tokenizer", *sizes


def tabulate(console: Console, out: Path) -> None:
    """Print the table of scores and write it to `out/summary.json`."""
    table = Table(
        title="Attribute prediction, test split: ROC-AUC", caption="* on attributes that no title names", min_width=70
    )
    for heading in ("model", "full", "text only", "image only", "image only*"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    rows = []
    for index, name in enumerate(MODELS):
        views = json.loads(_scores(out, index).read_text(encoding="utf-8"))["views"]
        auc = [views[view]["all"]["roc_auc"] for view in ("full", "text", "image")]
        auc.append(views["image"]["where"]["image"]["roc_auc"])
        rows.append({"model": name, "full": auc[0], "text": auc[1], "image": auc[2], "image_on_image_only": auc[3]})
        table.add_row(name, *(f"{value:.3f}" for value in auc))
    replace_text(out / "summary.json", json.dumps(rows, indent=1) + "\n")
    console.print(table)


def _deepspeed_file(out: Path, name: str) -> Path:
    return out / "settings" / f"{name}.json"


def _scores(out: Path, index: int) -> Path:
    return out / f"finetune{index}" / "test.json"
