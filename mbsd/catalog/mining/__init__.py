"""Offline: a behaviour log becomes query-item pairs."""
