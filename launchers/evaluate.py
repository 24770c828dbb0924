"""Score a task table with a fine-tuned model: full, text-only and image-only input.

deepspeed launchers/evaluate.py --config launchers/configs/evaluate.yaml
"""

from mbsd.command_line import parse_evaluate
from mbsd.errors import exits_cleanly


@exits_cleanly
def main() -> None:
    """Read the settings (fast, no torch), then score."""
    config = parse_evaluate()
    from mbsd.recipes import evaluate

    evaluate(config)


if __name__ == "__main__":
    main()
