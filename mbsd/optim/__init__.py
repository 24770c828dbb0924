"""LAMB, and how it knows its tensors under ZeRO."""
