"""`mbsd bench`: measurements of what this project claims, each against the alternative in the same run."""
