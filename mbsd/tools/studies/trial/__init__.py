"""`mbsd trial`: what a small model learns from a shop's own items, beside floors."""
