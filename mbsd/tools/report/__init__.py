"""`mbsd report`: the paper's tables from evaluated runs, and a page with curves and examples."""
