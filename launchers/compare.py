"""Tables 1, 4 and 5: the compared models, each pre-trained and fine-tuned by the same launchers.

python launchers/compare.py --config launchers/configs/compare_small.yaml --out runs/compare
"""

from mbsd.config.parse import parse_scoring
from mbsd.errors import exits_cleanly
from mbsd.tools.studies.compare.settings import CompareConfig


@exits_cleanly
def main() -> None:
    """Read the settings, then run what is not done yet."""
    config = parse_scoring(CompareConfig)
    from mbsd.tools.studies.compare.run import run_compare

    run_compare(config)


if __name__ == "__main__":
    main()
