"""Show findings: each renders to a stream it is given, one output a file; none computes."""
