"""Downstream tasks: table -> samples, head, metrics."""
