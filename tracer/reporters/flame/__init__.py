"""A flame graph in each of its formats."""
