"""`mbsd demo`: the whole story on a synthetic catalogue, each step the command a user would type."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mbsd.errors import UserError
from mbsd.tools.studies.commands import ROOT, Commands, LaunchConfig, in_clone, refuse_without_launchers, tool
from mbsd.tools.studies.shop import ShopConfig, draw_shop

NUM_ITEMS = 4800
# What is compared: a run's name -> the pre-trained run it starts from.
MODELS = {"scratch": None, "pre-trained, no SDMI": "stage2_no_sdmi", "pre-trained with SDMI": "stage2"}


def run_demo(out: Path, *, seed: int, ranks: int) -> None:
    """Draw a shop, build and mine it, pre-train in two stages with and without SDMI, fine-tune, evaluate, tabulate.

    Everything lands below `out`; each command's output goes to `out/logs`.

    Raises:
        UserError: `out` is in use, or this installation has no `launchers/` beside the package.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: already there and not empty; remove it or choose another --out")
    refuse_without_launchers()
    console, started = Console(soft_wrap=True), time.monotonic()
    commands = Commands(console, out / "logs", LaunchConfig(cpu_ranks=ranks))

    def launch(name: str, launcher: str, config: str | None, ds_config: str | None, **settings: object) -> None:
        words = ["--config", in_clone(f"launchers/configs/{config}.yaml")] if config else []
        words += ["--deepspeed_config", in_clone(f"ds_configs/{ds_config}.json")] if ds_config else []
        for key, value in settings.items():
            words += [f"--{key.replace('__', '.')}", str(value)]
        commands.launcher(name, launcher, *words)

    shop = draw_shop(commands, out, ShopConfig(NUM_ITEMS, seed))
    catalog, pairs, tags = shop.catalog, shop.pairs, shop.attributes

    launch(
        "stage1",
        "pretrain",
        "small_stage1",
        "cpu_stage1",
        run__dir=out / "stage1",
        run__seed=seed,
        data__catalog=catalog,
    )
    for name, distillation in (("stage2", {}), ("stage2_no_sdmi", NO_SDMI)):
        launch(name, "pretrain", "small_stage2", "cpu_stage2", run__dir=out / name, run__seed=seed,
               data__catalog=catalog, data__table=pairs, run__init_from=out / "stage1", **distillation)  # fmt: skip
    for index, source in enumerate(MODELS.values()):
        start = {"run__init_from": out / source} if source else {"run__init_from": "null", **_small_model()}
        launch(f"finetune{index}", "finetune", "small_attributes", "cpu_finetune", run__dir=out / f"finetune{index}",
               run__seed=seed, data__catalog=catalog, data__table=tags, data__tokenizer=out / "stage1/tokenizer",
               **start)  # fmt: skip
        launch(f"evaluate{index}", "evaluate", None, None, model=out / f"finetune{index}", out=_scores(out, index),
               data__catalog=catalog, data__table=tags, data__image_size=64, data__num_workers=0)  # fmt: skip
    _tabulate(console, out)
    console.print(f"{time.monotonic() - started:.0f} s. Curves: {tool('tensorboard')} --logdir {out}")


# Row 6 of Table 6: only the full view's loss.
NO_SDMI = {"sdmi__unimodal_losses": "false", "sdmi__distillation": "false"}


def _small_model() -> dict[str, object]:
    """The sizes of launchers/configs/small_stage1.yaml, for the model that starts from scratch."""
    import yaml

    model = yaml.safe_load((ROOT / "launchers/configs/small_stage1.yaml").read_text())["model"]
    return {f"model__{name}": json.dumps(value) for name, value in model.items()}


def _tabulate(console: Console, out: Path) -> None:
    table = Table(
        title="Attribute prediction, test split: ROC-AUC", caption="* on attributes that no title names", min_width=70
    )
    for heading in ("model", "full", "text only", "image only", "image only*"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    rows = []
    for index, name in enumerate(MODELS):
        views = json.loads(_scores(out, index).read_text())["views"]
        auc = [views[view]["all"]["roc_auc"] for view in ("full", "text", "image")]
        auc.append(views["image"]["where"]["image"]["roc_auc"])
        rows.append({"model": name, "full": auc[0], "text": auc[1], "image": auc[2], "image_on_image_only": auc[3]})
        table.add_row(name, *(f"{value:.3f}" for value in auc))
    (out / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")
    console.print(table)


def _scores(out: Path, index: int) -> Path:
    return out / f"finetune{index}" / "test.json"
