"""Measurements of what this project claims of itself, each against the alternative in the same run (`mbsd bench`)."""
