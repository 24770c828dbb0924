"""The stages of pre-training: each knows all that one kind of training needs."""
