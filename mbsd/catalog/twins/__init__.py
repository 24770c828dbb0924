"""Pairs of one product that nobody labelled: each item of a catalogue and a twin that is made of it."""
