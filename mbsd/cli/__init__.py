"""The commands: `mbsd …`, and those of `launchers/grid.py` and `launchers/submit.py`."""
