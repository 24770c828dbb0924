"""Vectors of a catalogue's items, in Parquet.

deepspeed launchers/embed.py --config launchers/configs/embed.yaml
"""

from mbsd.config.parse import parse_scoring
from mbsd.config.scoring import EmbedConfig
from mbsd.errors import exits_cleanly


@exits_cleanly
def main() -> None:
    """Read the settings (fast, no torch), then encode."""
    config = parse_scoring(EmbedConfig)
    from mbsd.scoring.embed import embed

    embed(config)


if __name__ == "__main__":
    main()
