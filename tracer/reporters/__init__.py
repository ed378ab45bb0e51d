"""Show findings. Each reporter renders one format to a stream it is given; none computes."""
