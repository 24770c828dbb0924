"""Scores and vectors of a trained model, and the floors it has to beat."""
