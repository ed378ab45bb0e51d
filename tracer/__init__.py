"""phptrace: which script grows the PHP workers, measured from outside."""

__version__ = "0.1.0"
