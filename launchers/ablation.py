"""Table 6: what each part of the method is worth, over a grid of fine-tunings.

python launchers/ablation.py --config launchers/configs/ablation.yaml --out runs/ablation
"""

from mbsd.config.parse import parse_scoring
from mbsd.errors import exits_cleanly
from mbsd.tools.studies.settings import AblationConfig


@exits_cleanly
def main() -> None:
    """Read the settings, then run what is not done yet."""
    config = parse_scoring(AblationConfig)
    from mbsd.tools.studies.ablation import run_ablation

    run_ablation(config)


if __name__ == "__main__":
    main()
