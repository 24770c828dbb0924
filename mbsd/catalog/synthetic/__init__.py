"""Offline: a synthetic shop with a behaviour log, for demos, studies and tests."""
