"""`launchers/paper.py`: everything that reproduces the paper, on one page."""
