"""The records both backends send, and their way to facts. Imports neither backend."""
