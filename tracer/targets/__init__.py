"""Finds the workers, and learns what their PHP and their kernel look like."""
