"""Finds the workers, and reads what their PHP binary, C library and kernel look like."""
