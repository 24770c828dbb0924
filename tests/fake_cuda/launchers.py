"""The launchers' command lines for the fake device, and the places that their processes have under two layouts."""

from __future__ import annotations

import json
from pathlib import Path

from mbsd.config.deepspeed import read_deepspeed
from tests.conftest import Shop
from tests.fake_cuda.forked import Process
from tests.fake_cuda.steps import ds_config
from tests.ranks import free_port
from tests.settings import TINY

VALIDATIONS, BATCH = 30, 8
LOCAL_RANK = 3  # of the rank that sees all devices
MODEL = [word for word in TINY if not word.startswith("--model.dropout")]  # dropout takes other kernels
# DALI would want a driver that answers it all.
PICTURES = ["--data.image_size=32", "--data.num_workers=1", "--data.decoder=torchvision"]


def all_visible(local_rank: int) -> dict[str, str]:
    """One rank of one, as a launching program sets it, that sees all devices."""
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": str(local_rank), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port())}  # fmt: skip


def one_per_task(ranks: int, *, shared: bool = False) -> list[dict[str, str]]:
    """The tasks of a step of Slurm, `srun --gpus-per-task=1`: each sees one device, another one; or all the same."""
    port = str(free_port())
    return [
        {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(ranks), "SLURM_STEP_NUM_NODES": "1",
         "SLURM_STEP_TASKS_PER_NODE": str(ranks), "SLURM_STEP_NODELIST": "localhost", "SLURM_NODEID": "0",
         "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "MASTER_PORT": port,
         "CUDA_VISIBLE_DEVICES": "0" if shared else str(rank)}
        for rank in range(ranks)
    ]  # fmt: skip


class Launches:
    """Command lines of a series of runs, each of which starts from the one before.

    Args:
        folder: for runs and settings.
        precision: fp16 or bf16.
        ranks: of each run.
    """

    def __init__(self, folder: Path, shop: Shop, precision: str, ranks: int) -> None:
        self.folder, self.shop, self.precision, self.ranks = folder, shop, precision, ranks

    def stage_1(self, steps: int) -> list[str]:
        """Masked modelling from scratch, with two validations."""
        return self._train("pretrain", "masked", steps, *MODEL, f"--run.validate_every={steps // 2}")

    def stage_2(self, validations: int) -> list[str]:
        """Matching, with a validation behind each step."""
        table = ["--stage=matching", "--data.table", str(self.shop.pairs), "--run.validate_every=1"]
        return self._train("pretrain", "matching", validations, *table, f"--run.init_from={self.folder}/masked")

    def finetune(self, steps: int) -> list[str]:
        """A task with a weight for each class."""
        task = ["--task.name=attributes", "--task.class_weights=balanced", "--data.table", str(self.shop.tags)]
        return self._train("finetune", "finetune", steps, *task, f"--run.init_from={self.folder}/matching")

    def evaluate(self) -> list[str]:
        """The fine-tuned model."""
        words = ["--model", str(self.folder / "finetune"), "--out", str(self.folder / "scores.json"), "--data.table",
                 str(self.shop.tags), f"--micro_batch={BATCH}"]  # fmt: skip
        return ["launchers/evaluate.py", *words, "--data.catalog", str(self.shop.catalog), *PICTURES]

    def _train(self, launcher: str, kind: str, steps: int, *more: str) -> list[str]:
        tree = ds_config(self.precision, kind).tree | {"train_batch_size": BATCH * self.ranks}
        path = self.folder / f"{kind}.json"
        path.write_text(json.dumps(tree))
        read_deepspeed(path).sizes(self.ranks)
        run = ["--deepspeed_config", str(path), "--run.dir", str(self.folder / kind), f"--run.max_steps={steps}",
               "--run.validate_samples=16", "--data.catalog", str(self.shop.catalog)]  # fmt: skip
        return [f"launchers/{launcher}.py", *run, *PICTURES, *more]


def on_places(words: list[str], record: Path, places: list[dict[str, str]]) -> list[Process]:
    """A start of a launcher: one process for each place."""
    return [Process(words, f"{record}_{rank}", place) for rank, place in enumerate(places)]
