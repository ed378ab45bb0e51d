"""One recording: a SQLite file that any SQL tool reads."""
