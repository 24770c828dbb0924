"""Checkpoints that others published, read through transformers' own classes and given the names of our weights."""
