"""Studies: many runs of the launchers, and a table and a picture of what they come to."""
