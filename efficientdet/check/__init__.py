"""Check a data set before training on it."""
