"""Fine-tune a pre-trained model on a task table.

deepspeed launchers/finetune.py --config launchers/configs/attributes.yaml \\
    --deepspeed_config ds_configs/h100_finetune.json
"""

from mbsd.command_line import parse
from mbsd.config import FinetuneConfig
from mbsd.errors import exits_cleanly


@exits_cleanly
def main() -> None:
    """Read the settings (fast, no torch), then train."""
    config, ds_config = parse(FinetuneConfig)
    from mbsd.recipes_finetune import finetune

    finetune(config, ds_config)


if __name__ == "__main__":
    main()
