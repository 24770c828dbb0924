"""What any room may need to write or show."""
