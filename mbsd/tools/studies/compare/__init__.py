"""`launchers/compare.py`: the compared models, trained alike, in the paper's tables."""
