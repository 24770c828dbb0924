"""`launchers/pretrain.py`: a stage of pre-training."""

from __future__ import annotations

from mbsd.config.deepspeed import DeepSpeedConfig
from mbsd.config.run import PretrainConfig
from mbsd.stages.registry import find_stage
from mbsd.training.setup import run_stage


def pretrain(config: PretrainConfig, ds_config: DeepSpeedConfig) -> None:
    """Train the stage that the settings name.

    Raises:
        UserError: there is no such stage, or as of `run_stage`.
    """
    run_stage(config, ds_config, find_stage(config.stage))
