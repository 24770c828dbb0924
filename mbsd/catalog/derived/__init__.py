"""Query-item pairs from the items' own titles, for a shop without a behaviour log."""
