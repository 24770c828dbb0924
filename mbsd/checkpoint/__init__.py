"""What a run saves and how it comes back."""
