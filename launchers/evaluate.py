"""Score a task table with a model: full, text-only and image-only input, and with titles or pictures missing.

deepspeed launchers/evaluate.py --config launchers/configs/evaluate.yaml
"""

from mbsd.command_line import parse_scoring
from mbsd.config_scoring import EvaluateConfig
from mbsd.errors import exits_cleanly


@exits_cleanly
def main() -> None:
    """Read the settings (fast, no torch), then score."""
    config = parse_scoring(EvaluateConfig)
    from mbsd.recipes_scoring import evaluate

    evaluate(config)


if __name__ == "__main__":
    main()
