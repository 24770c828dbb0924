"""Pre-train: stage 1 (masked words and patches) or stage 2 (query-item matching with SDMI).

deepspeed launchers/pretrain.py --config launchers/configs/stage1.yaml \\
    --deepspeed_config ds_configs/v100x16_stage1.json
"""

from mbsd.config.parse import parse
from mbsd.config.run import PretrainConfig
from mbsd.errors import exits_cleanly


@exits_cleanly
def main() -> None:
    """Read the settings (fast, no torch), then train."""
    config, ds_config = parse(PretrainConfig)
    from mbsd.training.pretrain import pretrain

    pretrain(config, ds_config)


if __name__ == "__main__":
    main()
