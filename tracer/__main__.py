"""`python -m tracer` is `phptrace`."""

from tracer.cli import main

if __name__ == "__main__":
    main()
