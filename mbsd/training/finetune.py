"""`launchers/finetune.py`: a downstream task."""

from __future__ import annotations

from mbsd.config.deepspeed import DeepSpeedConfig
from mbsd.config.run import FinetuneConfig
from mbsd.tasks.stage import task_stage
from mbsd.training.setup import run_stage


def finetune(config: FinetuneConfig, ds_config: DeepSpeedConfig) -> None:
    """Fine-tune for the task that the settings name.

    Raises:
        UserError: as of `run_stage`.
    """
    run_stage(config, ds_config, task_stage(config))
