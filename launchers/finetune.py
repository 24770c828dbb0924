"""Fine-tune a pre-trained model on a task table.

deepspeed launchers/finetune.py --config launchers/configs/attributes.yaml \\
    --deepspeed_config ds_configs/h100_finetune.json
"""

from mbsd.config.parse import parse
from mbsd.config.run import FinetuneConfig
from mbsd.errors import exits_cleanly


@exits_cleanly
def main() -> None:
    """Read the settings (fast, no torch), then train."""
    config, ds_config = parse(FinetuneConfig)
    from mbsd.training.finetune import finetune

    finetune(config, ds_config)


if __name__ == "__main__":
    main()
