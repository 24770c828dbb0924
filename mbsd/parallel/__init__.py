"""Which process this is, of how many, on which device."""
