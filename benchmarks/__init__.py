"""One command a table; every figure is a ratio against a baseline of the same run."""
