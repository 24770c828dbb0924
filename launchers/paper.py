"""Everything that reproduces the paper, at a scale that fits: Tables 1, 4, 5 and 6, Fig. 7 and Fig. 8, on one page.

python launchers/paper.py --scale small --out runs/paper
"""

from mbsd.config.parse import parse_scoring
from mbsd.errors import exits_cleanly
from mbsd.tools.studies.paper.settings import PaperConfig


@exits_cleanly
def main() -> None:
    """Read the settings, then run what is not done yet."""
    config = parse_scoring(PaperConfig)
    from mbsd.tools.studies.paper.run import run_paper

    run_paper(config)


if __name__ == "__main__":
    main()
