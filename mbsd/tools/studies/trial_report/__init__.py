"""What `mbsd trial` found, for one page: margins over floors, disputed items, classes, curves, and what to try next."""
