"""Fig. 7: attribute prediction with titles or pictures missing, with and without SDMI.

python launchers/missing.py --config launchers/configs/small_missing.yaml --out runs/missing
"""

from mbsd.config.parse import parse_scoring
from mbsd.errors import exits_cleanly
from mbsd.tools.studies.settings import MissingStudyConfig


@exits_cleanly
def main() -> None:
    """Read the settings, then run what is not done yet."""
    config = parse_scoring(MissingStudyConfig)
    from mbsd.tools.studies.missing import run_missing

    run_missing(config)


if __name__ == "__main__":
    main()
