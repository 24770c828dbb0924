"""Vectors of a catalogue's items, in Parquet.

deepspeed launchers/embed.py --config launchers/configs/embed.yaml
"""

from mbsd.command_line import parse_scoring
from mbsd.config_scoring import EmbedConfig
from mbsd.errors import exits_cleanly


@exits_cleanly
def main() -> None:
    """Read the settings (fast, no torch), then encode."""
    config = parse_scoring(EmbedConfig)
    from mbsd.recipes_scoring import embed

    embed(config)


if __name__ == "__main__":
    main()
