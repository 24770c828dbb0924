"""Offline: what a shop has -> a validated catalogue and task tables."""
