"""Score a task table with a model: full, text-only and image-only input, and with titles or pictures missing.

deepspeed launchers/evaluate.py --config launchers/configs/evaluate.yaml
"""

from mbsd.config.parse import parse_scoring
from mbsd.config.scoring import EvaluateConfig
from mbsd.errors import exits_cleanly


@exits_cleanly
def main() -> None:
    """Read the settings (fast, no torch), then score."""
    config = parse_scoring(EvaluateConfig)
    from mbsd.scoring.evaluate import evaluate

    evaluate(config)


if __name__ == "__main__":
    main()
