"""What runs have reached, for people: the paper's tables, and a page with curves and examples."""
