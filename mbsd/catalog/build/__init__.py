"""Offline: items and pictures become a validated catalogue."""
