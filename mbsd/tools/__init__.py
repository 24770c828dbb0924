"""Tools around a run; nothing above imports them."""
