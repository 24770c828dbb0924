"""A training run: its folder, its engine, its loop."""
