"""`mbsd bench gpu`: everything about a GPU that only a GPU can tell, in one command."""
