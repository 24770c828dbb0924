"""The page of a study: its tables and pictures in one HTML file."""
