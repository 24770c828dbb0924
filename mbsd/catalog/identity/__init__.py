"""Offline: which items of a catalogue are the same product."""
