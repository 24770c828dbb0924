"""Models measured on vectors, and vectors searched."""
